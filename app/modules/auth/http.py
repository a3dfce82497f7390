"""Routes of the auth API."""

from app.kernel.http.routes import Route
from app.kernel.process import Process
from app.modules.auth import wiring


async def routes(p: Process) -> list[Route]:
    """Return what the auth API serves."""
    auth = await p.use(wiring.auth)
    return [
        Route("POST", "/auth/v1/login", auth.login, public=True),
        Route("POST", "/auth/v1/logout", auth.logout, public=True),
        Route("GET", "/auth/v1/me", auth.get_me),
    ]
