"""Watches backups: their metrics, in every process with the database, and what is wrong with them."""

import time
from dataclasses import dataclass

from app.kernel.backup import metrics
from app.kernel.backup.watching import Problem, look, problems
from app.kernel.config import BackupSettings
from app.kernel.db import Database

_EVERY_S = 15.0


@dataclass(slots=True)
class BackupWatch:
    """Records the metrics of backups every 15 seconds, and finds what is wrong."""

    db: Database
    settings: BackupSettings
    is_published: bool
    due_at: float = 0.0

    async def measure(self) -> None:
        """Measure if it is due. Raises Unavailable."""
        if (now := time.monotonic()) < self.due_at:
            return
        self.due_at = now + _EVERY_S
        metrics.record(await look(self.db.all), self.settings)

    async def problems(self) -> list[Problem]:
        """Return what is wrong with backups. A first backup that is not due yet is not. Raises Unavailable."""
        found = problems(await look(self.db.all), self.settings, is_published=self.is_published)
        return [problem for problem in found if problem.type != "BackupMissing" or problem.level == "fail"]
