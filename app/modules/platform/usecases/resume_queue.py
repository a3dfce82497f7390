"""Resume a queue."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue.queues import QueueControl, Queues
from app.modules.platform.domain.queue import QueueRef


@operation("platform.resume_queue", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ResumeQueue:
    """Let the jobs of a paused queue start again."""

    db: Database
    queues: Queues
    audit: Audit

    async def __call__(self, caller: Caller, queue: QueueRef) -> QueueControl:
        """Return how the queue is set. Raises QueueNotFound. Safe to repeat."""
        async with self.db.begin() as tx:
            resumed = await self.queues.resume(tx, queue.name)
            await self.audit.record(tx, caller, "platform.resume_queue", target=queue.name)
        return resumed
