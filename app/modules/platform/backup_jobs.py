"""The jobs of backups: they run the commands that operators run, as child processes."""

from dataclasses import dataclass
from typing import Any

from loguru import logger

from app.kernel.actions import task
from app.kernel.backup import QUEUE
from app.kernel.backup.command import run_command
from app.kernel.config import BackupSettings, Settings
from app.kernel.queue import Schedule, Task

_HOUR_S = 3600.0
BACKUP = Task[None]("platform.backup", queue=QUEUE, max_attempts=5, timeout_s=72 * _HOUR_S)
DRILL = Task[None]("platform.backup_drill", queue=QUEUE, max_attempts=3, timeout_s=48 * _HOUR_S)
PRUNE = Task[None]("platform.backup_prune", queue=QUEUE, max_attempts=5, timeout_s=6 * _HOUR_S)
SCHEDULES = (
    Schedule(BACKUP, cron="15 2 * * *", overlap="skip"),
    Schedule(PRUNE, cron="45 3 * * *", overlap="skip"),
    Schedule(DRILL, cron="15 4 * * sun", overlap="skip"),
)


@dataclass(frozen=True, slots=True)
class BackupJobs:
    """Take, restore and prune backups by schedule."""

    settings: Settings

    @task(BACKUP)
    async def back_up(self) -> Any:
        """Take a backup, or record that of the provider; return it as the command does. Raises CommandFailed."""
        settings = self.settings[BackupSettings]
        if settings.engine == "managed":
            return await self._run("record")
        pace = [f"--max-rate={settings.max_rate}"] if settings.engine == "builtin" else []
        return await self._run("create", *pace)

    @task(DRILL)
    async def drill(self) -> Any:
        """Restore the newest backup on a scratch server; return what was measured. Raises CommandFailed."""
        return await self._run("drill")

    @task(PRUNE)
    async def prune(self) -> Any:
        """Delete what the retention does not keep; return what was deleted. Raises CommandFailed."""
        if self.settings[BackupSettings].engine == "managed":
            logger.info("nothing is deleted: the provider deletes backups by its own retention")
            return None
        return await self._run("prune", "--yes")

    async def _run(self, *arguments: str) -> Any:
        settings = self.settings[BackupSettings]
        if settings.engine == "builtin" and not settings.target:
            logger.info("nothing is done about backups: backup.target is not set")
            return None
        return await run_command("backup", *arguments, "--json", "--no-input")
