"""Who did what?"""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.audit import Audit, Entry, EntryFilters
from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import Cursor, Limit, Page, after, next_cursor


@dataclass(frozen=True, slots=True)
class EntriesWanted:
    """Which entries, and how many of them."""

    actor_id: UUID | None = None
    target: Annotated[str, Len(1, 256)] | None = None
    action: Annotated[str, Len(1, 128)] | None = None
    limit: Limit = 20
    cursor: Cursor | None = None


@operation("platform.list_audit", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListAudit:
    """Read the audit trail, newest first."""

    db: Database
    audit: Audit

    async def __call__(self, wanted: EntriesWanted) -> Page[Entry]:
        """Return a page. Raises Invalid for a wrong cursor. Safe to repeat."""
        filters = EntryFilters(wanted.actor_id, wanted.target, wanted.action)
        found = await self.audit.page(self.db, filters, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))
