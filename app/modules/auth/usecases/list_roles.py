"""List roles."""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import Cursor, Limit, Page, after, next_cursor
from app.modules.auth.domain.permissions import Role
from app.modules.auth.postgres.roles import PostgresRoles


@dataclass(frozen=True, slots=True)
class RolesWanted:
    """How many roles, from where."""

    limit: Limit = 20
    cursor: Cursor | None = None


@operation("auth.list_roles", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListRoles:
    """List roles, newest first."""

    db: Database
    roles: PostgresRoles

    async def __call__(self, wanted: RolesWanted) -> Page[Role]:
        """Return a page. Raises Invalid for a wrong cursor. Safe to repeat."""
        found = await self.roles.page(self.db, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))
