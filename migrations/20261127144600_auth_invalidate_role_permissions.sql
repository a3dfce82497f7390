-- When permissions of a role change, processes forget the actors that have the role.
CREATE FUNCTION auth.invalidate_roles() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM kernel.invalidate('auth.callers', ARRAY(SELECT DISTINCT 'role:' || role_id FROM changed));
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION auth.invalidate_roles() IS 'Invalidates what processes remember of the actors with the roles in changed rows.';

CREATE TRIGGER role_permissions_invalidate_added AFTER INSERT ON auth.role_permissions REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_roles();

CREATE TRIGGER role_permissions_invalidate_deleted AFTER DELETE ON auth.role_permissions REFERENCING OLD TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_roles();

CREATE TRIGGER role_permissions_invalidate_before AFTER UPDATE ON auth.role_permissions REFERENCING OLD TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_roles();

CREATE TRIGGER role_permissions_invalidate_after AFTER UPDATE ON auth.role_permissions REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_roles();

CREATE TRIGGER role_permissions_invalidate_when_emptied AFTER TRUNCATE ON auth.role_permissions
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_all();
