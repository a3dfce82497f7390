DROP TABLE platform.heartbeats;
DROP SCHEMA platform;
