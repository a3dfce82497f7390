-- When an actor changes or is deleted, processes forget it.
CREATE FUNCTION auth.invalidate_deleted_actors() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM kernel.invalidate('auth.callers', ARRAY(SELECT 'actor:' || id FROM before));
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION auth.invalidate_deleted_actors() IS 'Invalidates what processes remember of deleted actors.';

CREATE FUNCTION auth.invalidate_changed_actors() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM kernel.invalidate('auth.callers', ARRAY(
        SELECT 'actor:' || b.id FROM before b LEFT JOIN after a ON a.id = b.id
        WHERE (a.type, a.username, a.is_superuser, a.is_active, a.created_at, a.updated_at)
            IS DISTINCT FROM (b.type, b.username, b.is_superuser, b.is_active, b.created_at, b.updated_at)
    ));
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION auth.invalidate_changed_actors() IS 'Invalidates what processes remember of changed actors; not of those that were only active.';

CREATE TRIGGER actors_invalidate_deleted AFTER DELETE ON auth.actors REFERENCING OLD TABLE AS before
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_deleted_actors();

CREATE TRIGGER actors_invalidate_changed AFTER UPDATE ON auth.actors REFERENCING OLD TABLE AS before NEW TABLE AS after
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_changed_actors();

CREATE TRIGGER actors_invalidate_when_emptied AFTER TRUNCATE ON auth.actors
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_all();
