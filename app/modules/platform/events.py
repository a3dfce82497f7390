"""Published events, and their replay."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from annotated_types import Len

from app.kernel.actions import Caller, Database, Doc, change, read
from app.kernel.audit import Audit
from app.kernel.errors import Invalid
from app.kernel.fields import Pattern
from app.kernel.paging import Cursor, Limit, Page, PageByName, WorkCursor, after, mark, marked, next_cursor, page_of
from app.kernel.product import NAME
from app.kernel.queue.events import EventFilters, EventLog, ListedEvent, ListedSubscription, Period
from app.kernel.text import suggestion
from app.modules.platform.domain.queue import SubscriberNotFound, check_zone

AT_ONCE = 2000
From = Doc("Start of the period, such as 2026-11-22T10:00:00Z.")
To = Annotated[datetime | None, Doc("End of the period, excluded.")]


@dataclass(frozen=True, slots=True)
class EventsWanted:
    """Filters and page of a list of events."""

    type: Annotated[Annotated[str, Len(1, 128)] | None, Doc("Filter by type.", "auth.actor_disabled")] = None
    from_: Annotated[datetime | None, From] = None
    to: To = None
    trace: Annotated[
        Annotated[str, Pattern("^[0-9a-f]{32}$")] | None,
        Doc("Filter by trace id.", "0af7651916cd43dd8448eb211c80319c"),
    ] = None
    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class ReplayWanted:
    """A subscriber, and the period whose events it receives. The period ends now by default."""

    subscriber: Annotated[
        str, Len(1, 128), Doc("Subscriber that receives the events.", "platform.notify_of_disabled_actor")
    ]
    from_: Annotated[datetime, From]
    to: To = None
    cursor: Annotated[WorkCursor | None, Doc("`next_cursor` of an earlier replay.")] = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """Result of a replay; `next_from` is the time of the last event if more may follow."""

    enqueued_count: int
    next_from: datetime | None
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Events:
    """List events and their subscribers, and replay events."""

    log: EventLog
    audit: Audit

    @read(
        "platform.list_events",
        GET="/platform/v1/events",
        permission="platform:events:read",
        replica=True,
        command="events list",
        empty="actions publish them, such as creating an actor",
        examples=("--type auth.actor_created", "--from 2026-11-22T00:00:00Z --json"),
    )
    async def list(self, db: Database, wanted: EventsWanted) -> Page[ListedEvent]:
        """List published events, newest first, within their retention."""
        check_zone(**{"from": wanted.from_, "to": wanted.to})
        filters = EventFilters(wanted.type, wanted.from_, wanted.to, wanted.trace)
        found = await self.log.page(db, filters, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

    @read(
        "platform.list_subscriptions",
        GET="/platform/v1/subscriptions",
        permission="platform:events:read",
        command="events subscriptions",
        empty=f"consumers register their subscribers when they start: {NAME} run-event-consumer",
        examples=("", "--json"),
    )
    async def subscriptions(self, db: Database, wanted: PageByName) -> Page[ListedSubscription]:
        """List the subscribers of events with their lag: the events that they have not handled yet."""
        found = await self.log.subscriptions(db)
        return page_of(found, lambda subscription: subscription.subscriber, wanted.limit, wanted.cursor)

    @change(
        "platform.replay_events",
        POST="/platform/v1/events/replay",
        permission="platform:events:write",
        raises=(SubscriberNotFound,),
        command="events replay",
        count="platform.count_replay",
        confirm="Deliver {count} events to {subscriber} again?",
        message="enqueued {enqueued_count} events for {subscriber}",
        examples=(
            "--subscriber auth.greet --from 2026-11-22T10:00:00Z --yes",
            "--subscriber auth.greet --from 2026-11-01 --dry-run",
        ),
    )
    async def replay(self, db: Database, caller: Caller, wanted: ReplayWanted) -> Replayed:
        """Redeliver the events of a period to a subscriber, in the order of publishing.

        Each request enqueues up to 2000 events and returns `next_cursor` if more may follow. Jobs that are enqueued
        within the next hour run first. Not safe to repeat: each replay delivers the events again.
        """
        period = await self._period(db, wanted)
        async with db.begin() as tx:
            count, last = await self.log.replay(tx, wanted.subscriber, period, AT_ONCE)
            await self.audit.record(
                tx,
                caller,
                "platform.replay_events",
                target=wanted.subscriber,
                **{"from": period.from_.isoformat(), "to": period.to.isoformat()},
                enqueued_count=count,
            )
        if last is None or count < AT_ONCE:
            return Replayed(count, None, None)
        at, event_id = last
        return Replayed(count, at, mark(event_id, period.to, at))

    @read("platform.count_replay", raises=(SubscriberNotFound,))
    async def count_replay(self, db: Database, wanted: ReplayWanted) -> int:
        """Return the number of events that a replay would deliver."""
        return await self.log.count(db, wanted.subscriber, await self._period(db, wanted))

    async def _period(self, db: Database, wanted: ReplayWanted) -> Period:
        check_zone(**{"from": wanted.from_, "to": wanted.to})
        known = await self.log.subscribers(db)
        if wanted.subscriber not in known:
            raise SubscriberNotFound(
                f"there is no subscriber {wanted.subscriber}{suggestion(wanted.subscriber, known)}"
            )
        if wanted.cursor is not None:
            last, (to, at) = marked(wanted.cursor, 2)
            return Period(at, to, last)
        to = wanted.to or await self.log.now(db)
        if wanted.from_ >= to:
            raise Invalid("from must be before to", (("from", "must be before to"),))
        return Period(wanted.from_, to)
