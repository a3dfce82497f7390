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
from app.kernel.text import lasting

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


# what waits for a subscriber: jobs, events that no relay has sent to NATS yet, and events in NATS
_SUBSCRIPTIONS = """
    SELECT s.subscriber, s.event_type, s.queue, s.in_order, coalesce(j.waiting, 0), coalesce(o.waiting, 0),
        s.nats_pending, s.measured_at, extract(epoch FROM now() - least(j.oldest, o.oldest))::float8,
        coalesce(d.dead, 0), s.seen_at
    FROM kernel.subscriptions s
    LEFT JOIN (
        SELECT task, count(*) AS waiting, min(created_at) AS oldest FROM kernel.jobs
        WHERE event_id IS NOT NULL GROUP BY task
    ) j ON j.task = s.subscriber
    LEFT JOIN (
        SELECT type, count(*) AS waiting, min(published_at) AS oldest FROM kernel.event_outbox GROUP BY type
    ) o ON o.type = s.event_type
    LEFT JOIN (
        SELECT task, count(*) AS dead FROM kernel.dead_letters WHERE event_id IS NOT NULL GROUP BY task
    ) d ON d.task = s.subscriber
"""


@dataclass(frozen=True, slots=True)
class EventFilters:
    """Filters of events, combined with AND; `from_` is included, `to` excluded. `trace` is a trace id."""

    type: str | None = None
    from_: datetime | None = None
    to: datetime | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class ListedSubscription:
    """A subscription, and what it has not handled yet.

    `job_count` events are unfinished jobs, `outbox_count` events of its type have not been sent to NATS, and
    `nats_count` were in NATS at `measured_at`; null without NATS. `oldest_s` is the age of the oldest one outside NATS
    in seconds. `dead_count` events are dead letters.
    """

    subscriber: str
    event_type: str
    queue: str
    in_order: bool
    job_count: int
    outbox_count: int
    nats_count: int | None
    measured_at: datetime | None
    oldest_s: float | None
    dead_count: int
    seen_at: datetime

    columns: ClassVar[Columns] = (
        Column("subscriber"),
        Column("event", "event_type"),
        Column("queue", extra=True),
        Column("lag", lambda s: s.job_count + s.outbox_count + (s.nats_count or 0)),
        Column("oldest", lambda s: lasting(s.oldest_s)),
        Column("unsent", "outbox_count", extra=True),
        Column("in NATS", lambda s: "" if s.nats_count is None else s.nats_count, extra=True),
        Column("dead", "dead_count"),
        Column("seen", "seen_at", extra=True),
    )


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
        given = {"type": filters.type, "from": filters.from_, "to": filters.to, "trace": filters.trace}
        asked = where(
            "id < %(after)s" if after else "",
            "type = %(type)s" if filters.type else "",
            "published_at >= %(from)s" if filters.from_ else "",
            "published_at < %(to)s" if filters.to else "",
            "trace_context IS NOT NULL AND split_part(trace_context, '-', 2) = %(trace)s" if filters.trace else "",
        )
        sql = _PAGE + asked + "ORDER BY id DESC LIMIT %(limit)s"
        rows = await db.all(sql, {**given, "limit": limit, "after": after})
        return [ListedEvent(*known, trace_id=trace_id(context)) for *known, context in rows]

    async def now(self, db: Queries) -> datetime:
        """Return the time of the database, which events have."""
        return await now(db)

    async def subscribers(self, db: Queries) -> list[str]:
        """Return the names of all subscribers."""
        return [name for (name,) in await db.all("SELECT subscriber FROM kernel.subscriptions ORDER BY subscriber")]

    async def subscriptions(self, db: Queries) -> list[ListedSubscription]:
        """Return all subscriptions with their lag."""
        return [ListedSubscription(*row) for row in await db.all(_SUBSCRIPTIONS)]

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
