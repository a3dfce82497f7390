"""The audit trail."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.actions import Database, Doc, read
from app.kernel.audit import Audit, Entry, EntryFilters
from app.kernel.paging import Cursor, Limit, Page, after, next_cursor


@dataclass(frozen=True, slots=True)
class EntriesWanted:
    """Filters and page of a list of audit entries."""

    actor_id: Annotated[UUID | None, Doc("Filter by the actor who acted.")] = None
    target: Annotated[Annotated[str, Len(1, 256)] | None, Doc("Filter by the target of the action.")] = None
    action: Annotated[Annotated[str, Len(1, 128)] | None, Doc("Filter by action.", "platform.pause_queue")] = None
    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class AuditTrail:
    """Read the audit trail."""

    audit: Audit

    @read("platform.list_audit", GET="/platform/v1/audit", permission="platform:audit:read", replica=True)
    async def list(self, db: Database, wanted: EntriesWanted) -> Page[Entry]:
        """List audit entries, newest first."""
        filters = EntryFilters(wanted.actor_id, wanted.target, wanted.action)
        found = await self.audit.page(db, filters, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))
