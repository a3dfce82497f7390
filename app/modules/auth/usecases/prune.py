"""Forget what is over."""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sessions import PostgresSessions

KEPT_S = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many sessions and counts were removed."""

    sessions: int
    limits: int


@operation("auth.prune", Kind.ASYNC_TASK)
@dataclass(frozen=True, slots=True)
class Prune:
    """Remove sessions a week after they ended or expired, and counts of failed sign-ins when their window has ended."""

    db: Database
    sessions: PostgresSessions
    limits: Limits

    async def __call__(self) -> Pruned:
        """Return what was removed. Safe to repeat."""
        return Pruned(await self.sessions.prune(self.db, KEPT_S), await self.limits.prune(self.db))
