"""What happens when?"""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import Page
from app.kernel.queue.schedules import ListedSchedule, Schedules


@operation("platform.list_schedules", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListSchedules:
    """List the schedules that cron managers know, and how their last jobs ended."""

    db: Database
    schedules: Schedules

    async def __call__(self) -> Page[ListedSchedule]:
        """Return every schedule, by name. Safe to repeat."""
        return Page(await self.schedules.all(self.db))
