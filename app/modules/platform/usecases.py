"""The catalogue of actions."""

from dataclasses import dataclass

from app.kernel.actions import read
from app.kernel.actions.usecases import UseCase, UseCases
from app.kernel.paging import Limit, NameCursor, Page, page_of


@dataclass(frozen=True, slots=True)
class CasesWanted:
    """A page of the list of actions."""

    limit: Limit = 20
    cursor: NameCursor | None = None


@dataclass(frozen=True, slots=True)
class ActionCatalogue:
    """List the actions."""

    cases: UseCases

    @read("platform.list_usecases", GET="/platform/v1/usecases", permission="platform:usecases:read")
    async def list(self, wanted: CasesWanted) -> Page[UseCase]:
        """List all actions: summary, request, permission and command."""
        return page_of(self.cases.known, lambda case: case.id, wanted.limit, wanted.cursor)
