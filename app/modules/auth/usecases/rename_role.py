"""Rename a role."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.domain.permissions import Role, RoleNameExists, RoleNotFound, check_may_change_role
from app.modules.auth.postgres.roles import PostgresRoles


@dataclass(frozen=True, slots=True)
class RoleChange:
    """Another name for a role."""

    id: UUID
    name: Annotated[str, Len(1, 64)]


@operation("auth.rename_role", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class RenameRole:
    """Give a role another name."""

    db: Database
    roles: PostgresRoles
    audit: Audit

    async def __call__(self, caller: Caller, change: RoleChange) -> Role:
        """Return the role. Safe to repeat.

        Raises RoleNotFound, RoleNameExists; Denied unless the caller holds what the role does.
        """
        async with self.db.begin() as tx:
            if not await self.roles.lock(tx, [change.id]):
                raise RoleNotFound
            check_may_change_role(caller, await self.roles.permissions(tx, [change.id]))
            role = await self.roles.rename(tx, change.id, change.name)
            if role is None:
                raise RoleNameExists(f"the name {change.name} is taken")
            await self.audit.record(tx, caller, "auth.rename_role", target=role.id, name=role.name)
        return role
