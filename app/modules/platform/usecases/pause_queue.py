"""Pause a queue."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue.queues import QueueControl, Queues
from app.modules.platform.domain.queue import QueueRef


@operation("platform.pause_queue", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class PauseQueue:
    """Let no further job of a queue start. Those that run go on; jobs can still be enqueued."""

    db: Database
    queues: Queues
    audit: Audit

    async def __call__(self, caller: Caller, queue: QueueRef) -> QueueControl:
        """Return how the queue is set. Raises QueueNotFound. Safe to repeat."""
        async with self.db.begin() as tx:
            paused = await self.queues.pause(tx, queue.name)
            await self.audit.record(tx, caller, "platform.pause_queue", target=queue.name)
        return paused
