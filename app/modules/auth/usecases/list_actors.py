"""List actors."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Len

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import Cursor, Limit, Page, after, next_cursor
from app.modules.auth.domain.actors import Actor, ActorFilters, ActorType
from app.modules.auth.postgres.actors import PostgresActors


@dataclass(frozen=True, slots=True)
class ActorsWanted:
    """Which actors, and how many of them."""

    type: ActorType | None = None
    is_active: bool | None = None
    q: Annotated[str, Len(1, 64)] | None = None
    limit: Limit = 20
    cursor: Cursor | None = None


@operation("auth.list_actors", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListActors:
    """List actors, newest first."""

    db: Database
    actors: PostgresActors

    async def __call__(self, wanted: ActorsWanted) -> Page[Actor]:
        """Return a page. Raises Invalid for a wrong cursor. Safe to repeat."""
        filters = ActorFilters(wanted.type, wanted.is_active, wanted.q)
        found = await self.actors.page(self.db, filters, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))
