-- When an API key changes or is revoked, processes forget it.
CREATE FUNCTION auth.invalidate_deleted_api_keys() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM kernel.invalidate('auth.callers', ARRAY(SELECT 'key:' || id FROM before));
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION auth.invalidate_deleted_api_keys() IS 'Invalidates what processes remember of deleted api_keys.';

CREATE FUNCTION auth.invalidate_changed_api_keys() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM kernel.invalidate('auth.callers', ARRAY(
        SELECT 'key:' || b.id FROM before b LEFT JOIN after a ON a.id = b.id
        WHERE a.id IS NULL OR a.expires_at < b.expires_at
            OR (a.actor_id, a.secret_hash, a.permissions) IS DISTINCT FROM (b.actor_id, b.secret_hash, b.permissions)
    ));
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION auth.invalidate_changed_api_keys() IS 'Invalidates what processes remember of changed API keys; not of those that were only used.';

CREATE TRIGGER api_keys_invalidate_deleted AFTER DELETE ON auth.api_keys REFERENCING OLD TABLE AS before
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_deleted_api_keys();

CREATE TRIGGER api_keys_invalidate_changed AFTER UPDATE ON auth.api_keys REFERENCING OLD TABLE AS before NEW TABLE AS after
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_changed_api_keys();

CREATE TRIGGER api_keys_invalidate_when_emptied AFTER TRUNCATE ON auth.api_keys
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_all();
