"""The catalogue of actions."""

from dataclasses import dataclass

from app.kernel.actions import read
from app.kernel.actions.usecases import UseCase, UseCases
from app.kernel.paging import Page


@dataclass(frozen=True, slots=True)
class ActionCatalogue:
    """List what can be done."""

    cases: UseCases

    @read("platform.list_usecases", GET="/platform/v1/usecases", permission="platform:usecases:read")
    async def list(self) -> Page[UseCase]:
        """List all actions: summary, request, permission and command."""
        return Page([*self.cases.known])
