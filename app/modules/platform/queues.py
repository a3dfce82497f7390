"""Queues."""

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Interval, Len

from app.kernel.actions import Database, Doc, Note, Transaction, change, read
from app.kernel.audit import Audit, EntryFilters
from app.kernel.fields import Option
from app.kernel.paging import Limit, NameCursor, Page, page_of
from app.kernel.product import NAME
from app.kernel.queue.queues import ListedQueue, QueueAdmin, QueueNotFound, QueueStatus
from app.kernel.series import Series
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
class QueuesWanted:
    """A page of the queues."""

    limit: Limit = 20
    cursor: NameCursor | None = None


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

    @read(
        "platform.list_queues",
        GET="/platform/v1/queues",
        permission="platform:queues:read",
        command="queues list",
        empty=f"consumers register their queues when they start: {NAME} run-event-consumer",
    )
    async def list(self, db: Database, wanted: QueuesWanted) -> Page[ListedQueue]:
        """List queues with their job counts by state, the age of the oldest ready job, and their pauses."""
        page = page_of(await self.admin.all(db), lambda queue: queue.name, wanted.limit, wanted.cursor)
        done = await self.series.done_by_queue(db)
        return replace(
            page, items=[await self._completed(db, queue, *done.get(queue.name, ())) for queue in page.items]
        )

    async def _completed(self, db: Database, queue: ListedQueue, minute: int = 0, hour: int = 0) -> ListedQueue:
        """Return a queue with its throughput, and with who paused it."""
        queue = replace(queue, done_in_minute=minute, done_in_hour=hour)
        if queue.paused_at is None:
            return queue
        found = await self.audit.page(db, EntryFilters(target=queue.name, action="platform.pause_queue"), 1, None)
        return replace(queue, paused_by=str(found[0].actor_id or found[0].address)) if found else queue

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
