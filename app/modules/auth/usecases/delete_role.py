"""Delete a role."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.domain.permissions import RoleNotFound, check_may_change_role
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.usecases.get_role import RoleRef


@operation("auth.delete_role", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class DeleteRole:
    """Delete a role, and take it from everybody who has it."""

    db: Database
    roles: PostgresRoles
    audit: Audit

    async def __call__(self, caller: Caller, role: RoleRef) -> None:
        """Delete it; effective on the next request of those who had it.

        Raises RoleNotFound; Denied unless the caller holds what the role does.
        """
        async with self.db.begin() as tx:
            found = await self.roles.lock(tx, [role.id])
            if not found:
                raise RoleNotFound
            check_may_change_role(caller, await self.roles.permissions(tx, [role.id]))
            await self.roles.delete(tx, role.id)
            await self.audit.record(tx, caller, "auth.delete_role", target=role.id, name=found[0].name)
