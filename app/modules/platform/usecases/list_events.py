"""What has happened?"""

from dataclasses import dataclass
from datetime import datetime

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import Cursor, Limit, Page, after, next_cursor
from app.kernel.queue.events import EventFilters, EventLog, ListedEvent
from app.modules.platform.domain.queue import Name, check_zone


@dataclass(frozen=True, slots=True)
class EventsWanted:
    """Which events, published from one moment on and before another, and how many of them."""

    type: Name | None = None
    from_: datetime | None = None
    to: datetime | None = None
    limit: Limit = 20
    cursor: Cursor | None = None


@operation("platform.list_events", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListEvents:
    """List the events that were published, newest first, as long as they are kept."""

    db: Database
    events: EventLog

    async def __call__(self, wanted: EventsWanted) -> Page[ListedEvent]:
        """Return a page. Raises Invalid for a wrong cursor. Safe to repeat."""
        check_zone(**{"from": wanted.from_, "to": wanted.to})
        filters = EventFilters(wanted.type, wanted.from_, wanted.to)
        found = await self.events.page(self.db, filters, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))
