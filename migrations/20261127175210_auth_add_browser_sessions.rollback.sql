-- Browsers must sign in again.
ALTER TABLE auth.sessions DROP COLUMN confirmed_at, DROP COLUMN browser_token;
