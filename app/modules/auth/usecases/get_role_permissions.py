"""See the permissions of a role."""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.modules.auth.domain.permissions import RoleNotFound
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.usecases.get_role import RoleRef


@dataclass(frozen=True, slots=True)
class RolePermissions:
    """The permissions of a role."""

    permissions: list[str]


@operation("auth.get_role_permissions", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class GetRolePermissions:
    """List the permissions of a role."""

    db: Database
    roles: PostgresRoles

    async def __call__(self, role: RoleRef) -> RolePermissions:
        """Return the permissions. Raises RoleNotFound. Safe to repeat."""
        if await self.roles.get(self.db, role.id) is None:
            raise RoleNotFound
        return RolePermissions(sorted(await self.roles.permissions(self.db, [role.id])))
