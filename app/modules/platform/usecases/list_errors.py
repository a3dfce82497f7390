"""What goes wrong?"""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import Cursor, Limit, Page, after, next_cursor
from app.kernel.sentinel import Errors, State, StoredError
from app.kernel.sentinel import Kind as ErrorKind


@dataclass(frozen=True, slots=True)
class ErrorsWanted:
    """Which groups of errors, and how many of them."""

    state: State | None = None
    kind: ErrorKind | None = None
    limit: Limit = 20
    cursor: Cursor | None = None


@operation("platform.list_errors", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListErrors:
    """List the groups of captured errors; those that appeared last come first."""

    db: Database
    errors: Errors

    async def __call__(self, wanted: ErrorsWanted) -> Page[StoredError]:
        """Return a page. Raises Invalid for a wrong cursor. Safe to repeat."""
        found = await self.errors.page(self.db, wanted.state, wanted.kind, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))
