"""List roles."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import after, next_cursor
from app.modules.auth.domain.permissions import Role, Roles


@dataclass(frozen=True, slots=True)
class RolesWanted:
    """How many roles, from where."""

    limit: Annotated[int, Interval(ge=1, le=100)] = 20
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class RolePage:
    """Roles, newest first."""

    items: list[Role]
    next_cursor: str | None


@operation("auth.list_roles", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListRoles:
    """List roles, newest first."""

    db: Database
    roles: Roles

    async def __call__(self, wanted: RolesWanted) -> RolePage:
        """Return a page. Raises Invalid for a wrong cursor. Safe to repeat."""
        found = await self.roles.page(self.db, wanted.limit, after(wanted.cursor))
        return RolePage(found, next_cursor(found, wanted.limit))
