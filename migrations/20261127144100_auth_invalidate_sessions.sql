-- When a session ends or is limited further, processes forget it: they answer requests from memory.
CREATE FUNCTION auth.invalidate_all() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM kernel.invalidate('auth.callers', NULL);
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION auth.invalidate_all() IS 'Invalidates everything that processes remember of callers.';

CREATE FUNCTION auth.invalidate_deleted_sessions() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM kernel.invalidate('auth.callers', ARRAY(
        SELECT 'session:' || id FROM before WHERE ended_at IS NULL AND idle_expires_at > now() AND expires_at > now()
    ));
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION auth.invalidate_deleted_sessions() IS 'Invalidates what processes remember of deleted sessions that were live.';

CREATE FUNCTION auth.invalidate_changed_sessions() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM kernel.invalidate('auth.callers', ARRAY(
        SELECT 'session:' || b.id FROM before b LEFT JOIN after a ON a.id = b.id
        WHERE b.ended_at IS NULL AND (
            a.id IS NULL OR a.ended_at IS NOT NULL OR a.idle_expires_at < b.idle_expires_at OR a.expires_at < b.expires_at
            OR (a.actor_id, a.scope) IS DISTINCT FROM (b.actor_id, b.scope)
        )
    ));
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION auth.invalidate_changed_sessions() IS 'Invalidates what processes remember of sessions that have ended or were shortened; not of refreshed ones.';

CREATE TRIGGER sessions_invalidate_deleted AFTER DELETE ON auth.sessions REFERENCING OLD TABLE AS before
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_deleted_sessions();

CREATE TRIGGER sessions_invalidate_changed AFTER UPDATE ON auth.sessions REFERENCING OLD TABLE AS before NEW TABLE AS after
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_changed_sessions();

CREATE TRIGGER sessions_invalidate_when_emptied AFTER TRUNCATE ON auth.sessions
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_all();
