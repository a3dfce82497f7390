-- When roles are given to an actor or taken from it, processes forget the actor.
CREATE TRIGGER actor_roles_invalidate_added AFTER INSERT ON auth.actor_roles REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_actors();

CREATE TRIGGER actor_roles_invalidate_deleted AFTER DELETE ON auth.actor_roles REFERENCING OLD TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_actors();

CREATE TRIGGER actor_roles_invalidate_before AFTER UPDATE ON auth.actor_roles REFERENCING OLD TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_actors();

CREATE TRIGGER actor_roles_invalidate_after AFTER UPDATE ON auth.actor_roles REFERENCING NEW TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_actors();

CREATE TRIGGER actor_roles_invalidate_when_emptied AFTER TRUNCATE ON auth.actor_roles
FOR EACH STATEMENT EXECUTE FUNCTION auth.invalidate_all();
