"""The event log, and replay of its events."""

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction, now, where
from app.kernel.queue.enqueue import insert_jobs
from app.kernel.queue.jobs import trace_id
from app.kernel.telemetry.traces import current_context

# jobs that are enqueued within an hour run before the replay
_PRIORITY = -360

_PAGE = """
    SELECT id, type, version, published_at, trace_context
    FROM kernel.events
"""

_COUNT = """
    SELECT count(*) FROM kernel.events
    WHERE type = (SELECT event_type FROM kernel.subscriptions WHERE subscriber = %(subscriber)s)
      AND published_at >= %(from)s AND published_at < %(to)s
      AND (%(after)s::uuid IS NULL OR (published_at, id) > (%(from)s, %(after)s))
"""

_REPLAY = insert_jobs(
    given="""
    chosen AS (
        SELECT e.id, e.version, e.payload, e.published_at, s.subscriber, s.queue, s.max_attempts, s.timeout_s,
            s.in_order
        FROM kernel.subscriptions s JOIN kernel.events e ON e.type = s.event_type
        WHERE s.subscriber = %(subscriber)s AND e.published_at >= %(from)s AND e.published_at < %(to)s
          AND (%(after)s::uuid IS NULL OR (e.published_at, e.id) > (%(from)s, %(after)s))
        ORDER BY e.published_at, e.id LIMIT %(limit)s
    ), last AS (
        SELECT published_at, id FROM chosen ORDER BY published_at DESC, id DESC LIMIT 1
    ),
    """,
    rows="chosen ORDER BY published_at, chosen.id",
    task="subscriber",
    payload="payload",
    priority="%(priority)s",
    turn_key="CASE WHEN in_order THEN 'subscriber/' || subscriber END",
    in_order="in_order",
    event_id="chosen.id",
    event_version="version",
    then="""
    SELECT (SELECT count(*) FROM added), (SELECT published_at FROM last), (SELECT id FROM last),
        (SELECT count(*) FROM notified)
    """,
)


@dataclass(frozen=True, slots=True)
class EventFilters:
    """Filters of events, combined with AND; `from_` is included, `to` excluded."""

    type: str | None = None
    from_: datetime | None = None
    to: datetime | None = None


@dataclass(frozen=True, slots=True)
class ListedEvent:
    """A published event without its payload, which may contain personal data."""

    id: UUID
    type: str
    version: int
    published_at: datetime
    trace_id: str | None

    columns: ClassVar[Columns] = (
        Column("event", "id"),
        Column("type"),
        Column("version", extra=True),
        Column("published at"),
        Column("trace", "trace_id", extra=True),
    )


@dataclass(frozen=True, slots=True)
class Period:
    """A period of the log: `from_` is included, `to` excluded; with `after`, it starts after that event."""

    from_: datetime
    to: datetime
    after: UUID | None = None


@dataclass(frozen=True, slots=True)
class EventLog:
    """Events in `kernel.events`, and their subscribers."""

    async def page(self, db: Queries, filters: EventFilters, limit: int, after: UUID | None) -> list[ListedEvent]:
        """Return a page of events, newest first."""
        given = {"type": filters.type, "from": filters.from_, "to": filters.to, "limit": limit, "after": after}
        asked = where(
            "id < %(after)s" if after else "",
            "type = %(type)s" if filters.type else "",
            "published_at >= %(from)s" if filters.from_ else "",
            "published_at < %(to)s" if filters.to else "",
        )
        rows = await db.all(_PAGE + asked + "ORDER BY id DESC LIMIT %(limit)s", given)
        return [ListedEvent(*known, trace_id=trace_id(context)) for *known, context in rows]

    async def now(self, db: Queries) -> datetime:
        """Return the time of the database, which events have."""
        return await now(db)

    async def subscribers(self, db: Queries) -> list[str]:
        """Return the names of all subscribers."""
        return [name for (name,) in await db.all("SELECT subscriber FROM kernel.subscriptions ORDER BY subscriber")]

    async def count(self, db: Queries, subscriber: str, period: Period) -> int:
        """Return the number of events of a subscriber's type."""
        row = await db.one(_COUNT, _given(subscriber, period))
        return row[0] if row else 0

    async def replay(
        self, tx: Transaction, subscriber: str, period: Period, limit: int
    ) -> tuple[int, tuple[datetime, UUID] | None]:
        """Enqueue a job for each event in the order of publishing; return their number and the last one."""
        given = {**_given(subscriber, period), "limit": limit, "priority": _PRIORITY, "trace": current_context()}
        row = await tx.one(_REPLAY, given)
        if row is None or row[1] is None:
            return 0, None
        return row[0], (row[1], row[2])


def _given(subscriber: str, period: Period) -> dict[str, object]:
    return {"subscriber": subscriber, "from": period.from_, "to": period.to, "after": period.after}
