"""Which processes are alive?"""

from dataclasses import dataclass

from app.kernel.operations import Kind, operation
from app.kernel.pages import Page
from app.kernel.registry import LiveProcess, Registry


@operation("platform.list_processes", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListProcesses:
    """List the processes that are alive."""

    registry: Registry

    async def __call__(self) -> Page[LiveProcess]:
        """Return the live processes, by name. Safe to repeat."""
        return Page(await self.registry.alive())
