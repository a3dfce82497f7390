"""Routes of the platform API."""

from app.kernel.http.routes import Route
from app.kernel.process import Process
from app.modules.platform import wiring


async def routes(p: Process) -> list[Route]:
    """Return what the platform API serves."""
    platform = await p.use(wiring.platform)
    return [
        Route("GET", "/platform/v1/processes", platform.list_processes, permission="platform:processes:read"),
        Route("GET", "/platform/v1/audit", platform.list_audit, permission="platform:audit:read"),
    ]
