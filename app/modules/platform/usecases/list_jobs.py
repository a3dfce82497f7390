"""What is to be done, and what was?"""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import Cursor, Limit, Page, after, next_cursor
from app.kernel.queue.jobs import JobFilters, Jobs, JobState, ListedJob
from app.modules.platform.domain.queue import Name


@dataclass(frozen=True, slots=True)
class JobsWanted:
    """Which jobs, and how many of them."""

    queue: Name | None = None
    task: Name | None = None
    state: JobState | None = None
    limit: Limit = 20
    cursor: Cursor | None = None


@operation("platform.list_jobs", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListJobs:
    """List jobs that are to be done and, as long as they are kept, those that ended; newest first."""

    db: Database
    jobs: Jobs

    async def __call__(self, wanted: JobsWanted) -> Page[ListedJob]:
        """Return a page. Raises Invalid for a wrong cursor. Safe to repeat."""
        filters = JobFilters(wanted.queue, wanted.task, wanted.state)
        found = await self.jobs.page(self.db, filters, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))
