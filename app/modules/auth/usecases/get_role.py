"""See a role."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.modules.auth.domain.permissions import Role, RoleNotFound
from app.modules.auth.postgres.roles import PostgresRoles


@dataclass(frozen=True, slots=True)
class RoleRef:
    """A role."""

    id: UUID


@operation("auth.get_role", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class GetRole:
    """See a role."""

    db: Database
    roles: PostgresRoles

    async def __call__(self, role: RoleRef) -> Role:
        """Return the role. Raises RoleNotFound. Safe to repeat."""
        found = await self.roles.get(self.db, role.id)
        if found is None:
            raise RoleNotFound
        return found
