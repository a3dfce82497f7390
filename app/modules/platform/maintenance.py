"""Maintenance jobs: a heartbeat, time series, and retention."""

from dataclasses import dataclass

from loguru import logger

from app.kernel.actions import Database, Transaction, task
from app.kernel.db.retention import Pruned, Retention
from app.kernel.queue import Schedule, Task
from app.kernel.series import Series
from app.modules.platform import backup_jobs

HEARTBEAT = Task[None]("platform.heartbeat")
MEASURE = Task[None]("platform.measure", max_attempts=3, timeout_s=30)
PRUNE = Task[None]("platform.prune")
SCHEDULES = (
    Schedule(HEARTBEAT, cron="* * * * *"),
    Schedule(MEASURE, cron="* * * * *", overlap="skip", priority=1000),  # a backlog is when one looks at figures
    Schedule(PRUNE, cron="17 * * * *", overlap="skip"),
    *backup_jobs.SCHEDULES,
)


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Run the maintenance jobs of the platform."""

    retention: Retention
    series: Series

    @task(HEARTBEAT)
    async def beat(self) -> None:
        """Log a message, which shows that cron manager, queue and consumer work."""
        logger.info("cron manager, queue and consumer work")

    @task(MEASURE)
    async def measure(self, tx: Transaction) -> None:
        """Add what processes have counted since the last time, and what the queue holds, to the time series."""
        await self.series.add(tx)

    @task(PRUNE)
    async def prune(self, db: Database) -> Pruned:
        """Create partitions for the coming days and drop data past its retention. Safe to repeat.

        Raises Unavailable while a transaction of many seconds has read a partition that must be dropped.
        """
        return await self.retention.prune(db)
