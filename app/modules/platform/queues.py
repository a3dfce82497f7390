"""Queues."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval, Len

from app.kernel.actions import Database, Doc, Note, Transaction, change, read
from app.kernel.fields import Option
from app.kernel.paging import Page
from app.kernel.product import NAME
from app.kernel.queue.queues import ListedQueue, QueueAdmin, QueueNotFound, QueueStatus

QueueName = Annotated[str, Len(1, 128), Doc("Name of the queue.", "default")]


@dataclass(frozen=True, slots=True)
class QueueRef:
    """A queue."""

    name: QueueName


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

    @read(
        "platform.list_queues",
        GET="/platform/v1/queues",
        permission="platform:queues:read",
        command="queues list",
        empty=f"consumers register their queues when they start: {NAME} run-event-consumer",
    )
    async def list(self, db: Database) -> Page[ListedQueue]:
        """List queues with their job counts by state and the age of the oldest ready job."""
        return Page(await self.admin.all(db))

    @change(
        "platform.pause_queue",
        POST="/platform/v1/queues/{name}/pause",
        permission="platform:queues:write",
        raises=(QueueNotFound,),
        command="queues pause",
        examples=("default",),
    )
    async def pause(self, tx: Transaction, queue: QueueRef) -> QueueStatus:
        """Stop starting jobs of a queue. Running jobs finish; enqueueing continues. Safe to repeat."""
        return await self.admin.pause(tx, queue.name)

    @change(
        "platform.resume_queue",
        POST="/platform/v1/queues/{name}/resume",
        permission="platform:queues:write",
        raises=(QueueNotFound,),
        command="queues resume",
        examples=("default",),
    )
    async def resume(self, tx: Transaction, queue: QueueRef) -> QueueStatus:
        """Start the jobs of a paused queue again. Safe to repeat."""
        return await self.admin.resume(tx, queue.name)

    @change(
        "platform.limit_queue",
        PUT="/platform/v1/queues/{name}/concurrency",
        permission="platform:queues:write",
        raises=(QueueNotFound,),
        command="queues limit",
        examples=("reports 2", "reports --none"),
    )
    async def limit(self, tx: Transaction, limit: QueueLimit, note: Note) -> QueueStatus:
        """Limit the concurrent jobs of a queue in the whole deployment. Running jobs continue. Safe to repeat."""
        note.details["concurrency"] = limit.concurrency
        return await self.admin.limit(tx, limit.name, limit.concurrency)
