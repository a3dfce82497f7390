-- Actors, sessions, roles and permissions, second factors, API keys, signing keys, limits.
CREATE SCHEMA auth;

COMMENT ON SCHEMA auth IS 'Who may do what. Only the auth module reads and writes it; others ask its portal.';

CREATE TABLE auth.actors (
    id uuid PRIMARY KEY,
    type text NOT NULL CHECK (type IN ('user', 'admin', 'service_acc')),
    username text NOT NULL,
    username_key text NOT NULL UNIQUE,
    password_hash text,
    is_superuser boolean NOT NULL DEFAULT false,
    is_active boolean NOT NULL DEFAULT true,
    last_active_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE auth.actors IS 'Actors of all types in one table, so that sessions, roles and permissions have foreign keys.';
COMMENT ON COLUMN auth.actors.id IS 'UUIDv7 of the actor.';
COMMENT ON COLUMN auth.actors.type IS 'user, admin or service_acc. Service accounts have API keys, all others have passwords.';
COMMENT ON COLUMN auth.actors.username IS 'Name as it was given.';
COMMENT ON COLUMN auth.actors.username_key IS 'Name as it is compared: NFKC, case folded.';
COMMENT ON COLUMN auth.actors.password_hash IS 'argon2id; null for service accounts.';
COMMENT ON COLUMN auth.actors.is_superuser IS 'Whether the actor has every permission.';
COMMENT ON COLUMN auth.actors.is_active IS 'False for a disabled actor, who has no sessions and cannot log in.';
COMMENT ON COLUMN auth.actors.last_active_at IS 'When the actor was last active, to the minute.';
COMMENT ON COLUMN auth.actors.created_at IS 'When the actor was created.';
COMMENT ON COLUMN auth.actors.updated_at IS 'When the actor was last changed.';

CREATE TABLE auth.actor_permissions (
    actor_id uuid NOT NULL REFERENCES auth.actors (id) ON DELETE CASCADE,
    permission text NOT NULL,
    PRIMARY KEY (actor_id, permission)
);

COMMENT ON TABLE auth.actor_permissions IS 'Permissions that are granted to an actor directly.';
COMMENT ON COLUMN auth.actor_permissions.actor_id IS 'Who has the permission.';
COMMENT ON COLUMN auth.actor_permissions.permission IS 'Name as module:resource:action.';

CREATE TABLE auth.roles (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE auth.roles IS 'Roles: named sets of permissions.';
COMMENT ON COLUMN auth.roles.id IS 'UUIDv7 of the role.';
COMMENT ON COLUMN auth.roles.name IS 'Name of the role.';
COMMENT ON COLUMN auth.roles.created_at IS 'When the role was created.';
COMMENT ON COLUMN auth.roles.updated_at IS 'When the role was last changed.';

CREATE TABLE auth.role_permissions (
    role_id uuid NOT NULL REFERENCES auth.roles (id) ON DELETE CASCADE,
    permission text NOT NULL,
    PRIMARY KEY (role_id, permission)
);

COMMENT ON TABLE auth.role_permissions IS 'Permissions of a role.';
COMMENT ON COLUMN auth.role_permissions.role_id IS 'The role.';
COMMENT ON COLUMN auth.role_permissions.permission IS 'Name as module:resource:action.';

CREATE TABLE auth.actor_roles (
    actor_id uuid NOT NULL REFERENCES auth.actors (id) ON DELETE CASCADE,
    role_id uuid NOT NULL REFERENCES auth.roles (id) ON DELETE CASCADE,
    PRIMARY KEY (actor_id, role_id)
);

COMMENT ON TABLE auth.actor_roles IS 'Roles of an actor.';
COMMENT ON COLUMN auth.actor_roles.actor_id IS 'Who has the role.';
COMMENT ON COLUMN auth.actor_roles.role_id IS 'The role.';

CREATE INDEX actor_roles_role_id ON auth.actor_roles (role_id);

CREATE TABLE auth.totp (
    actor_id uuid PRIMARY KEY REFERENCES auth.actors (id) ON DELETE CASCADE,
    secret bytea NOT NULL,
    confirmed_at timestamptz,
    last_step bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE auth.totp IS 'Second factors: time-based one-time passwords (RFC 6238).';
COMMENT ON COLUMN auth.totp.actor_id IS 'Whose second factor it is.';
COMMENT ON COLUMN auth.totp.secret IS 'The shared secret, encrypted under the master secret.';
COMMENT ON COLUMN auth.totp.confirmed_at IS 'When the first code was entered; null while logging in does not require it.';
COMMENT ON COLUMN auth.totp.last_step IS 'Time step of the last code that was accepted; the same and older codes are refused.';
COMMENT ON COLUMN auth.totp.created_at IS 'When the enrolment began.';

CREATE TABLE auth.recovery_codes (
    actor_id uuid NOT NULL REFERENCES auth.totp (actor_id) ON DELETE CASCADE,
    code_hash bytea NOT NULL,
    PRIMARY KEY (actor_id, code_hash)
);

COMMENT ON TABLE auth.recovery_codes IS 'Recovery codes that replace a lost second factor, each once; a used one is deleted.';
COMMENT ON COLUMN auth.recovery_codes.actor_id IS 'Whose code it is.';
COMMENT ON COLUMN auth.recovery_codes.code_hash IS 'Digest of the code.';

CREATE TABLE auth.api_keys (
    id uuid PRIMARY KEY,
    actor_id uuid NOT NULL REFERENCES auth.actors (id) ON DELETE CASCADE,
    name text NOT NULL,
    secret_hash bytea NOT NULL,
    permissions text[] NOT NULL,
    expires_at timestamptz NOT NULL,
    last_used_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE auth.api_keys IS 'API keys of service accounts; a revoked one is deleted.';
COMMENT ON COLUMN auth.api_keys.id IS 'UUIDv7, part of the key.';
COMMENT ON COLUMN auth.api_keys.actor_id IS 'The service account.';
COMMENT ON COLUMN auth.api_keys.name IS 'What the key is for.';
COMMENT ON COLUMN auth.api_keys.secret_hash IS 'Digest of the secret part of the key.';
COMMENT ON COLUMN auth.api_keys.permissions IS 'What the key may do at most; the permissions of the account limit it further.';
COMMENT ON COLUMN auth.api_keys.expires_at IS 'When the key expires.';
COMMENT ON COLUMN auth.api_keys.last_used_at IS 'When the key was last used.';
COMMENT ON COLUMN auth.api_keys.created_at IS 'When the key was created.';

CREATE INDEX api_keys_actor_id ON auth.api_keys (actor_id);

CREATE TABLE auth.sessions (
    id uuid PRIMARY KEY,
    actor_id uuid NOT NULL REFERENCES auth.actors (id) ON DELETE CASCADE,
    refresh_counter bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    idle_expires_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at timestamptz,
    rotated_at timestamptz NOT NULL DEFAULT now(),
    address text,
    user_agent text,
    scope text[],
    api_key_id uuid REFERENCES auth.api_keys (id) ON DELETE CASCADE
);

COMMENT ON TABLE auth.sessions IS 'Sessions of actors and of OAuth clients. Refresh tokens are a MAC over id and counter, so none is stored.';
COMMENT ON COLUMN auth.sessions.id IS 'UUIDv7, the sid of access tokens.';
COMMENT ON COLUMN auth.sessions.actor_id IS 'Whose session it is.';
COMMENT ON COLUMN auth.sessions.refresh_counter IS 'Counter of the current refresh token; an older one is reuse and ends the session.';
COMMENT ON COLUMN auth.sessions.created_at IS 'When the actor logged in.';
COMMENT ON COLUMN auth.sessions.idle_expires_at IS 'When the session ends unless it is refreshed.';
COMMENT ON COLUMN auth.sessions.expires_at IS 'When the session ends in any case.';
COMMENT ON COLUMN auth.sessions.ended_at IS 'When the session was ended early, by logout, reuse or an administrator; null otherwise.';
COMMENT ON COLUMN auth.sessions.rotated_at IS 'When the refresh token was last rotated.';
COMMENT ON COLUMN auth.sessions.address IS 'Address of the client at login.';
COMMENT ON COLUMN auth.sessions.user_agent IS 'User-Agent of the client at login.';
COMMENT ON COLUMN auth.sessions.scope IS 'Permissions that an OAuth client asked for; null when unlimited.';
COMMENT ON COLUMN auth.sessions.api_key_id IS 'The API key that an OAuth client authenticated with; revoking it ends the session.';

CREATE INDEX sessions_actor_id ON auth.sessions (actor_id) WHERE ended_at IS NULL;
CREATE INDEX sessions_api_key_id ON auth.sessions (api_key_id) WHERE api_key_id IS NOT NULL;

CREATE TABLE auth.signing_keys (
    kid text PRIMARY KEY,
    algorithm text NOT NULL,
    private_key bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE auth.signing_keys IS 'Keys that sign access tokens; the public halves are published as JWKS.';
COMMENT ON COLUMN auth.signing_keys.kid IS 'Key id, in the header of tokens and in the JWKS.';
COMMENT ON COLUMN auth.signing_keys.algorithm IS 'Such as ES256.';
COMMENT ON COLUMN auth.signing_keys.private_key IS 'Encrypted under a key derived from the master secret.';
COMMENT ON COLUMN auth.signing_keys.created_at IS 'When the key was made; the newest one signs.';

CREATE TABLE auth.limits (
    key text PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    hits integer NOT NULL,
    pending integer NOT NULL DEFAULT 0,
    most integer NOT NULL DEFAULT 0,
    window_s real NOT NULL DEFAULT 900
);

COMMENT ON TABLE auth.limits IS 'Attempts within a fixed window. An attempt is reserved before it is evaluated.';
COMMENT ON COLUMN auth.limits.key IS 'What is limited: a name, an address, a password.';
COMMENT ON COLUMN auth.limits.started_at IS 'When the window began.';
COMMENT ON COLUMN auth.limits.hits IS 'Number of attempts, failed and pending.';
COMMENT ON COLUMN auth.limits.pending IS 'Number of attempts that are not evaluated yet.';
COMMENT ON COLUMN auth.limits.most IS 'Maximum number of attempts within the window.';
COMMENT ON COLUMN auth.limits.window_s IS 'Seconds that the window lasts.';

CREATE INDEX limits_started_at ON auth.limits (started_at);
