-- Processes of the releases that remember callers must have stopped.
DROP TRIGGER actor_roles_invalidate_when_emptied ON auth.actor_roles;
DROP TRIGGER actor_roles_invalidate_after ON auth.actor_roles;
DROP TRIGGER actor_roles_invalidate_before ON auth.actor_roles;
DROP TRIGGER actor_roles_invalidate_deleted ON auth.actor_roles;
DROP TRIGGER actor_roles_invalidate_added ON auth.actor_roles;
