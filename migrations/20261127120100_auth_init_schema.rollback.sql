-- Drops the tables of auth with what is in them. Without CASCADE: refused while another schema depends on them.
DROP TABLE
    auth.limits, auth.signing_keys, auth.sessions, auth.api_keys, auth.recovery_codes, auth.totp,
    auth.actor_roles, auth.role_permissions, auth.roles, auth.actor_permissions, auth.actors;
DROP SCHEMA auth;
