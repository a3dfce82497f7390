-- Processes of the releases that remember callers must have stopped.
DROP TRIGGER actor_permissions_invalidate_when_emptied ON auth.actor_permissions;
DROP TRIGGER actor_permissions_invalidate_after ON auth.actor_permissions;
DROP TRIGGER actor_permissions_invalidate_before ON auth.actor_permissions;
DROP TRIGGER actor_permissions_invalidate_deleted ON auth.actor_permissions;
DROP TRIGGER actor_permissions_invalidate_added ON auth.actor_permissions;
DROP FUNCTION auth.invalidate_actors;
