"""What was given up?"""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import Cursor, Limit, Page, after, next_cursor
from app.kernel.queue.dead_letters import DeadLetterFilters, DeadLetters, ListedDeadLetter
from app.modules.platform.domain.queue import Name


@dataclass(frozen=True, slots=True)
class DeadLettersWanted:
    """Which dead letters, and how many of them."""

    queue: Name | None = None
    task: Name | None = None
    limit: Limit = 20
    cursor: Cursor | None = None


@operation("platform.list_dead_letters", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListDeadLetters:
    """List the jobs that were given up, and why; newest first."""

    db: Database
    dead_letters: DeadLetters

    async def __call__(self, wanted: DeadLettersWanted) -> Page[ListedDeadLetter]:
        """Return a page. Raises Invalid for a wrong cursor. Safe to repeat."""
        filters = DeadLetterFilters(wanted.queue, wanted.task)
        found = await self.dead_letters.page(self.db, filters, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))
