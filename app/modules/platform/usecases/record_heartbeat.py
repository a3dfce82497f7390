"""Prove that schedules and jobs work."""

from dataclasses import dataclass
from typing import Protocol

from app.kernel.db import Database, Queries
from app.kernel.operations import Kind, operation


class Heartbeats(Protocol):
    """Heartbeats, stored."""

    async def add(self, db: Queries) -> None:
        """Store a heartbeat of now, and forget those older than a day."""
        ...


@operation("platform.record_heartbeat", Kind.ASYNC_TASK)
@dataclass(frozen=True, slots=True)
class RecordHeartbeat:
    """Leave a trace every minute that cron manager, queue and consumer work together."""

    db: Database
    heartbeats: Heartbeats

    async def __call__(self) -> None:
        """Record a heartbeat. Safe to repeat: it only adds one more."""
        await self.heartbeats.add(self.db)
