"""Maintenance jobs: a heartbeat, and retention."""

from dataclasses import dataclass

from loguru import logger

from app.kernel.actions import Database, task
from app.kernel.db.retention import Pruned, Retention
from app.kernel.queue import Schedule, Task

HEARTBEAT = Task[None]("platform.heartbeat")
PRUNE = Task[None]("platform.prune")
SCHEDULES = (Schedule(HEARTBEAT, cron="* * * * *"), Schedule(PRUNE, cron="17 * * * *", overlap="skip"))


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Run the maintenance jobs of the platform."""

    retention: Retention

    @task(HEARTBEAT)
    async def beat(self) -> None:
        """Log a message, which shows that cron manager, queue and consumer work."""
        logger.info("cron manager, queue and consumer work")

    @task(PRUNE)
    async def prune(self, db: Database) -> Pruned:
        """Create partitions for the coming days and drop data past its retention. Safe to repeat.

        Raises Unavailable while a transaction of many seconds has read a partition that must be dropped.
        """
        return await self.retention.prune(db)
