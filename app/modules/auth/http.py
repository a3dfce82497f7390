"""Routes of the auth API."""

from app.kernel.http.routes import Route
from app.kernel.process import Process
from app.modules.auth import wiring


async def routes(p: Process) -> list[Route]:
    """Return what the auth API serves."""
    sign_in = await p.use(wiring.sign_in)
    return [
        Route("POST", "/auth/v1/login", sign_in.login, public=True),
        Route("POST", "/auth/v1/refresh", sign_in.refresh, public=True),
        Route("POST", "/auth/v1/logout", sign_in.logout, public=True),
        Route("GET", "/auth/v1/me", sign_in.get_me),
        Route("PUT", "/auth/v1/me/password", sign_in.change_password),
        Route("GET", "/auth/v1/me/sessions", sign_in.list_my_sessions),
        Route("DELETE", "/auth/v1/me/sessions/{id}", sign_in.end_my_session),
        Route("GET", "/.well-known/jwks.json", sign_in.get_jwks, public=True, cache_s=300),
    ]
