-- One row per minute while schedules and jobs work; the newest says how long ago that was.
CREATE SCHEMA platform;

CREATE TABLE platform.heartbeats (
    id uuid PRIMARY KEY,
    recorded_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX heartbeats_recorded_at ON platform.heartbeats (recorded_at);
