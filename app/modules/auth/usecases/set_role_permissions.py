"""Give a role permissions."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.domain.permissions import (
    Permissions,
    RoleNotFound,
    check_may_change_role,
    check_may_grant,
    checked_permissions,
)
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.usecases.get_role_permissions import RolePermissions


@dataclass(frozen=True, slots=True)
class RolePermissionsWanted:
    """The permissions a role is to have, in place of those it has."""

    id: UUID
    permissions: Permissions


@operation("auth.set_role_permissions", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class SetRolePermissions:
    """Replace the permissions of a role; effective on the next request of those who have it."""

    db: Database
    roles: PostgresRoles
    audit: Audit
    catalogue: Mapping[str, str]

    async def __call__(self, caller: Caller, wanted: RolePermissionsWanted) -> RolePermissions:
        """Return the permissions. Safe to repeat.

        Raises RoleNotFound, InvalidPermission; Denied unless the caller holds what the role has and what it is to have.
        """
        permissions = checked_permissions(wanted.permissions, self.catalogue)
        async with self.db.begin() as tx:
            if not await self.roles.lock(tx, [wanted.id]):
                raise RoleNotFound
            check_may_change_role(caller, await self.roles.permissions(tx, [wanted.id]))
            check_may_grant(caller, permissions)
            await self.roles.replace_permissions(tx, wanted.id, permissions)
            given = sorted(permissions)
            await self.audit.record(tx, caller, "auth.set_role_permissions", target=wanted.id, permissions=given)
        return RolePermissions(given)
