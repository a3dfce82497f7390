"""Maintenance: the job that deletes what is old, and one that shows that jobs run."""

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
    """Keep the platform's tables small."""

    retention: Retention

    @task(HEARTBEAT)
    async def beat(self) -> None:
        """Log every minute that cron manager, queue and consumer work together."""
        logger.info("cron manager, queue and consumer work")

    @task(PRUNE)
    async def prune(self, db: Database) -> Pruned:
        """Make the partitions of the days ahead; remove finished jobs, events and the like when they are old.

        Raises Unavailable while somebody reads what is to be dropped. Safe to repeat.
        """
        return await self.retention.prune(db)
