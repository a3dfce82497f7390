-- Processes of the releases that remember callers must have stopped.
DROP TRIGGER role_permissions_invalidate_when_emptied ON auth.role_permissions;
DROP TRIGGER role_permissions_invalidate_after ON auth.role_permissions;
DROP TRIGGER role_permissions_invalidate_before ON auth.role_permissions;
DROP TRIGGER role_permissions_invalidate_deleted ON auth.role_permissions;
DROP TRIGGER role_permissions_invalidate_added ON auth.role_permissions;
DROP FUNCTION auth.invalidate_roles;
