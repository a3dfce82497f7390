-- Sessions of browsers: a cookie with an opaque token names them, in place of access and refresh tokens.
ALTER TABLE auth.sessions
    ADD COLUMN browser_token bytea,
    ADD COLUMN confirmed_at timestamptz;

COMMENT ON COLUMN auth.sessions.browser_token IS 'SHA-256 of the token in the cookie of a browser; null for other sessions.';
COMMENT ON COLUMN auth.sessions.confirmed_at IS 'When the actor of a browser last gave its password and second factor; null for other sessions.';
