-- Rotation and origin of sessions; roles; second factor; API keys; limits.
ALTER TABLE auth.sessions
    ADD COLUMN rotated_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN address text,
    ADD COLUMN user_agent text;

CREATE TABLE auth.roles (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE auth.role_permissions (
    role_id uuid NOT NULL REFERENCES auth.roles (id) ON DELETE CASCADE,
    permission text NOT NULL,
    PRIMARY KEY (role_id, permission)
);

CREATE TABLE auth.actor_roles (
    actor_id uuid NOT NULL REFERENCES auth.actors (id) ON DELETE CASCADE,
    role_id uuid NOT NULL REFERENCES auth.roles (id) ON DELETE CASCADE,
    PRIMARY KEY (actor_id, role_id)
);

CREATE INDEX actor_roles_role_id ON auth.actor_roles (role_id);

CREATE TABLE auth.totp (
    actor_id uuid PRIMARY KEY REFERENCES auth.actors (id) ON DELETE CASCADE,
    secret bytea NOT NULL,
    confirmed_at timestamptz,
    last_step bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE auth.recovery_codes (
    actor_id uuid NOT NULL REFERENCES auth.totp (actor_id) ON DELETE CASCADE,
    code_hash bytea NOT NULL,
    PRIMARY KEY (actor_id, code_hash)
);

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

CREATE INDEX api_keys_actor_id ON auth.api_keys (actor_id);

-- Attempts within a window, by what is limited: a username, an address.
CREATE TABLE auth.limits (
    key text PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    hits integer NOT NULL
);

CREATE INDEX limits_started_at ON auth.limits (started_at);
