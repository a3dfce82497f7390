"""Live processes."""

from dataclasses import dataclass

from app.kernel.actions import read
from app.kernel.paging import Page
from app.kernel.process.registry import LiveProcess, Registry


@dataclass(frozen=True, slots=True)
class Processes:
    """List live processes."""

    registry: Registry

    @read("platform.list_processes", GET="/platform/v1/processes", permission="platform:processes:read")
    async def list(self) -> Page[LiveProcess]:
        """List live processes by name."""
        return Page(await self.registry.alive())
