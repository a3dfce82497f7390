"""Routes of the auth API."""

from app.kernel.http.routes import Route
from app.kernel.process import Process
from app.modules.auth import wiring
from app.modules.auth.domain.oauth import OAUTH
from app.modules.auth.usecases.verify import Verified


def _identity(verified: Verified) -> dict[str, str]:
    return {
        "x-auth-actor-id": str(verified.actor_id),
        "x-auth-actor-type": verified.actor_type,
        "x-auth-permissions": ",".join(verified.permissions),
    }


async def routes(p: Process) -> list[Route]:
    """Return what the auth API serves."""
    own, oauth = await p.use(wiring.sign_in), await p.use(wiring.oauth)
    return [
        Route("POST", "/auth/v1/login", own.login, public=True),
        Route("POST", "/auth/v1/refresh", own.refresh, public=True),
        Route("POST", "/auth/v1/logout", own.logout, public=True),
        Route("GET", "/auth/v1/me", own.get_me),
        Route("PUT", "/auth/v1/me/password", own.change_password),
        Route("POST", "/auth/v1/me/totp", own.start_totp),
        Route("POST", "/auth/v1/me/totp/confirm", own.confirm_totp),
        Route("DELETE", "/auth/v1/me/totp", own.remove_totp),
        Route("GET", "/auth/v1/verify", own.verify, headers=_identity),
        Route("POST", "/oauth/token", oauth.token, public=True, codec=OAUTH),
        Route("POST", "/oauth/introspect", oauth.introspect, public=True, codec=OAUTH),
        Route("POST", "/oauth/revoke", oauth.revoke, public=True, codec=OAUTH),
        Route("GET", "/.well-known/oauth-authorization-server", oauth.metadata, public=True, cache_s=300),
        Route("GET", "/.well-known/jwks.json", own.get_jwks, public=True, cache_s=300),
    ]
