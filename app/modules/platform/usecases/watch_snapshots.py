"""Does somebody hold a snapshot?"""

from dataclasses import dataclass

from loguru import logger

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.upkeep import HeldSnapshot, Upkeep

LONG_S = 600.0


@operation("platform.watch_snapshots", Kind.ASYNC_TASK)
@dataclass(frozen=True, slots=True)
class WatchSnapshots:
    """Say who has held a snapshot for ten minutes: tables grow meanwhile, because nothing can be cleaned away."""

    db: Database
    upkeep: Upkeep

    async def __call__(self) -> list[HeldSnapshot]:
        """Return them, longest first; each is a warning in the log. Safe to repeat."""
        found = await self.upkeep.held_snapshots(self.db, LONG_S)
        for held in found:
            logger.warning("{} has held a snapshot for {:.0f} min: end it", held.holder, held.age_s / 60)
        return found
