-- Actors of all types are rows of one table, so that sessions and permissions have real foreign keys.
CREATE SCHEMA auth;

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

CREATE TABLE auth.actor_permissions (
    actor_id uuid NOT NULL REFERENCES auth.actors (id) ON DELETE CASCADE,
    permission text NOT NULL,
    PRIMARY KEY (actor_id, permission)
);

CREATE TABLE auth.sessions (
    id uuid PRIMARY KEY,
    actor_id uuid NOT NULL REFERENCES auth.actors (id) ON DELETE CASCADE,
    refresh_counter bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    idle_expires_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at timestamptz
);

CREATE INDEX sessions_actor_id ON auth.sessions (actor_id) WHERE ended_at IS NULL;

-- The private key is encrypted under a key derived from the master secret.
CREATE TABLE auth.signing_keys (
    kid text PRIMARY KEY,
    algorithm text NOT NULL,
    private_key bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
