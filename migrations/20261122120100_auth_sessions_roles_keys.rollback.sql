DROP TABLE auth.limits;
DROP TABLE auth.api_keys;
DROP TABLE auth.recovery_codes;
DROP TABLE auth.totp;
DROP TABLE auth.actor_roles;
DROP TABLE auth.role_permissions;
DROP TABLE auth.roles;
ALTER TABLE auth.sessions DROP COLUMN rotated_at, DROP COLUMN address, DROP COLUMN user_agent;
