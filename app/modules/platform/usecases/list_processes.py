"""Which processes are alive?"""

from dataclasses import dataclass

from app.kernel.operations import Kind, operation
from app.kernel.registry import LiveProcess, Registry


@dataclass(frozen=True, slots=True)
class LiveProcesses:
    """The processes that have reported themselves lately; they fit one page."""

    items: list[LiveProcess]
    next_cursor: str | None = None


@operation("platform.list_processes", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListProcesses:
    """List the processes that are alive."""

    registry: Registry

    async def __call__(self) -> LiveProcesses:
        """Return the live processes, by name. Safe to repeat."""
        return LiveProcesses(await self.registry.alive())
