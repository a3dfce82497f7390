"""Queues."""

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Interval, Len

from app.kernel.actions import Database, Doc, Note, Transaction, change, read
from app.kernel.audit import Audit, Entry, EntryFilters
from app.kernel.fields import Option
from app.kernel.paging import Page, PageByName, page_of
from app.kernel.product import NAME
from app.kernel.queue.queues import ListedQueue, QueueAdmin, QueueNotFound, QueueStatus
from app.kernel.series import Series
from app.modules.auth.portal import Names
from app.modules.platform.domain.pauses import Reason, Seconds, Until, pause_of

QueueName = Annotated[str, Len(1, 128), Doc("Name of the queue.", "default")]


@dataclass(frozen=True, slots=True)
class QueueRef:
    """A queue."""

    name: QueueName


@dataclass(frozen=True, slots=True)
class QueuePause:
    """A queue, and for how long and why it is paused."""

    name: QueueName
    reason: Reason = None
    seconds: Seconds = None
    until: Until = None


@dataclass(frozen=True, slots=True)
class QueueLimit:
    """Maximum number of concurrent jobs of a queue in the whole deployment."""

    name: QueueName
    concurrency: Annotated[
        Annotated[int, Interval(ge=1, le=1_000_000)] | None,
        Doc("Maximum number of concurrent jobs; null means no limit."),
        Option(is_argument=True, none="Remove the limit."),
    ]


@dataclass(frozen=True, slots=True)
class Queues:
    """List, pause, resume and limit queues."""

    admin: QueueAdmin
    audit: Audit
    series: Series
    names: Names

    @read(
        "platform.list_queues",
        GET="/platform/v1/queues",
        permission="platform:queues:read",
        command="queues list",
        empty=f"consumers register their queues when they start: {NAME} run-event-consumer",
    )
    async def list(self, db: Database, wanted: PageByName) -> Page[ListedQueue]:
        """List queues with their job counts by state, the age of the oldest ready job, and their pauses."""
        page = page_of(await self.admin.all(db), lambda queue: queue.name, wanted.limit, wanted.cursor)
        done, paused = await self.series.done_by_queue(db), [queue for queue in page.items if queue.paused_at]
        entries = {queue.name: await self._paused(db, queue.name) for queue in paused}
        names = await self.names([entry.actor_id for entry in entries.values() if entry and entry.actor_id])

        def completed(queue: ListedQueue) -> ListedQueue:
            minute, hour = done.get(queue.name, (0, 0))
            by = None
            if (entry := entries.get(queue.name)) is not None:
                by = entry.address if entry.actor_id is None else names.get(entry.actor_id, str(entry.actor_id))
            return replace(queue, paused_by=by, done_in_minute=minute, done_in_hour=hour)

        return replace(page, items=list(map(completed, page.items)))

    async def _paused(self, db: Database, name: str) -> Entry | None:
        """Return the record of the pause of a queue; None if there is none any more."""
        found = await self.audit.page(
            db, EntryFilters(target=name, action="platform.pause_queue", outcome="done"), 1, None
        )
        return found[0] if found else None

    @change(
        "platform.pause_queue",
        POST="/platform/v1/queues/{name}/pause",
        permission="platform:queues:write",
        notable=True,
        raises=(QueueNotFound,),
        command="queues pause",
        examples=("default", 'reports --for 2h --reason "the mail server is down"'),
    )
    async def pause(self, tx: Transaction, queue: QueuePause, note: Note) -> QueueStatus:
        """Stop starting jobs of a queue, until it is resumed or the pause expires.

        Running jobs finish; enqueueing continues. Pausing again replaces the reason and the expiry. Safe to repeat.
        """
        pause = await pause_of(tx, queue.seconds, queue.until, queue.reason)
        note.details |= pause.details()
        return await self.admin.pause(tx, queue.name, pause.until, pause.reason)

    @change(
        "platform.resume_queue",
        POST="/platform/v1/queues/{name}/resume",
        permission="platform:queues:write",
        notable=True,
        raises=(QueueNotFound,),
        command="queues resume",
        examples=("default",),
    )
    async def resume(self, tx: Transaction, queue: QueueRef) -> QueueStatus:
        """Start the jobs of a paused queue again, before its pause expires. Safe to repeat."""
        return await self.admin.resume(tx, queue.name)

    @change(
        "platform.limit_queue",
        PUT="/platform/v1/queues/{name}/concurrency",
        permission="platform:queues:write",
        notable=True,
        raises=(QueueNotFound,),
        command="queues limit",
        examples=("reports 2", "reports --none"),
    )
    async def limit(self, tx: Transaction, limit: QueueLimit, note: Note) -> QueueStatus:
        """Limit the concurrent jobs of a queue in the whole deployment. Running jobs continue. Safe to repeat."""
        note.details["concurrency"] = limit.concurrency
        return await self.admin.limit(tx, limit.name, limit.concurrency)
