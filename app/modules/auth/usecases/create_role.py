"""Create a role."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Len

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.identifiers import uuid7
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.domain.permissions import Role, RoleNameExists
from app.modules.auth.postgres.roles import PostgresRoles


@dataclass(frozen=True, slots=True)
class NewRole:
    """A role to be."""

    name: Annotated[str, Len(1, 64)]


@operation("auth.create_role", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class CreateRole:
    """Create a role without permissions."""

    db: Database
    roles: PostgresRoles
    audit: Audit

    async def __call__(self, caller: Caller, new: NewRole) -> Role:
        """Return the role. Raises RoleNameExists. Not safe to repeat."""
        async with self.db.begin() as tx:
            role = await self.roles.add(tx, uuid7(), new.name)
            if role is None:
                raise RoleNameExists(f"the name {new.name} is taken")
            await self.audit.record(tx, caller, "auth.create_role", target=role.id, name=role.name)
        return role
