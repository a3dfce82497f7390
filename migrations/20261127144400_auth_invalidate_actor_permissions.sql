-- When permissions are granted to an actor or taken from it, processes forget the actor.
CREATE FUNCTION auth.invalidate_actors() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM kernel.invalidate('auth.callers', ARRAY(SELECT DISTINCT 'actor:' || actor_id FROM changed));
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION auth.invalidate_actors() IS 'Invalidates what processes remember of the actors in changed rows.';

CREATE TRIGGER actor_permissions_invalidate_added AFTER INSERT ON auth.actor_permissions REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_actors();

CREATE TRIGGER actor_permissions_invalidate_deleted AFTER DELETE ON auth.actor_permissions REFERENCING OLD TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_actors();

CREATE TRIGGER actor_permissions_invalidate_before AFTER UPDATE ON auth.actor_permissions REFERENCING OLD TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_actors();

CREATE TRIGGER actor_permissions_invalidate_after AFTER UPDATE ON auth.actor_permissions REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_actors();

CREATE TRIGGER actor_permissions_invalidate_when_emptied AFTER TRUNCATE ON auth.actor_permissions
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_all();
