"""Upkeep: the jobs that keep the platform small, and one that shows that it runs."""

from dataclasses import dataclass

from app.kernel.actions import Database, task
from app.kernel.queue import Schedule, Task
from app.kernel.upkeep import Pruned, Upkeep
from app.modules.platform.postgres import Heartbeats

HEARTBEAT = Task[None]("platform.heartbeat")
PRUNE = Task[None]("platform.prune")
SCHEDULES = (Schedule(HEARTBEAT, cron="* * * * *"), Schedule(PRUNE, cron="17 * * * *", overlap="skip"))


@dataclass(frozen=True, slots=True)
class PlatformUpkeep:
    """Keep the platform's tables small."""

    kernel: Upkeep
    heartbeats: Heartbeats

    @task(HEARTBEAT)
    async def beat(self, db: Database) -> None:
        """Leave a trace every minute that cron manager, queue and consumer work together."""
        await self.heartbeats.add(db)

    @task(PRUNE)
    async def prune(self, db: Database) -> Pruned:
        """Make the partitions of the days ahead; remove finished jobs, events and the like when they are old.

        Raises Unavailable while somebody reads what is to be dropped. Safe to repeat.
        """
        return await self.kernel.prune(db)
