"""Live processes."""

from dataclasses import dataclass

from app.kernel.actions import read
from app.kernel.paging import Page, PageByName, page_of
from app.kernel.process.registry import LiveProcess, Registry
from app.kernel.product import NAME


@dataclass(frozen=True, slots=True)
class Processes:
    """List live processes."""

    registry: Registry

    @read(
        "platform.list_processes",
        GET="/platform/v1/processes",
        permission="platform:processes:read",
        command="processes list",
        empty=f"processes report themselves every few seconds: {NAME} run-all-in-one",
        examples=("", "--json"),
    )
    async def list(self, wanted: PageByName) -> Page[LiveProcess]:
        """List live processes with their hosts, versions, memory and workers, by name."""
        return page_of(await self.registry.alive(), lambda p: f"{p.name} {p.id}", wanted.limit, wanted.cursor)
