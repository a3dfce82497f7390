"""Routes of the platform API."""

from app.kernel.http.routes import Route
from app.kernel.process import Process
from app.modules.platform import wiring


async def routes(p: Process) -> list[Route]:
    """Return what the platform API serves."""
    list_processes = await p.use(wiring.list_processes)
    return [Route("GET", "/platform/v1/processes", list_processes, permission="platform:processes:read")]
