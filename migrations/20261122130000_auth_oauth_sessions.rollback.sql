ALTER TABLE auth.sessions DROP COLUMN scope, DROP COLUMN api_key_id;
