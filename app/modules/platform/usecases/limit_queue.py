"""Limit a queue."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue.queues import QueueControl, Queues
from app.modules.platform.domain.queue import Name


@dataclass(frozen=True, slots=True)
class QueueLimit:
    """How many jobs of a queue may run at once in the whole deployment; None: as many as the workers can."""

    name: Name
    concurrency: Annotated[int, Interval(ge=1, le=1_000_000)] | None


@operation("platform.limit_queue", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class LimitQueue:
    """Set how many jobs of a queue may run at once in the whole deployment. Those that run go on."""

    db: Database
    queues: Queues
    audit: Audit

    async def __call__(self, caller: Caller, limit: QueueLimit) -> QueueControl:
        """Return how the queue is set. Raises QueueNotFound. Safe to repeat."""
        async with self.db.begin() as tx:
            limited = await self.queues.limit(tx, limit.name, limit.concurrency)
            await self.audit.record(
                tx, caller, "platform.limit_queue", target=limit.name, concurrency=limit.concurrency
            )
        return limited
