-- Sessions of OAuth clients: limited to a scope, and gone with the API key they were made with.
ALTER TABLE auth.sessions
    ADD COLUMN scope text[],
    ADD COLUMN api_key_id uuid REFERENCES auth.api_keys (id) ON DELETE CASCADE;

CREATE INDEX sessions_api_key_id ON auth.sessions (api_key_id) WHERE api_key_id IS NOT NULL;
