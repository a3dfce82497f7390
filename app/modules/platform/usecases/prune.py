"""Keep the kernel's tables small."""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.upkeep import Pruned, Upkeep


@operation("platform.prune", Kind.ASYNC_TASK)
@dataclass(frozen=True, slots=True)
class Prune:
    """Make the partitions of the days ahead; remove finished jobs, events and the like when they are old."""

    db: Database
    upkeep: Upkeep

    async def __call__(self) -> Pruned:
        """Return what was done. Raises Unavailable while somebody reads what is to be dropped. Safe to repeat."""
        return await self.upkeep.prune(self.db)
