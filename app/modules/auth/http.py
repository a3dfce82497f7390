"""Routes of the auth API."""

from app.kernel.http.routes import Route
from app.kernel.process import Process
from app.modules.auth import wiring
from app.modules.auth.domain.oauth import OAUTH
from app.modules.auth.usecases.verify import Verified

_SEE, _CHANGE = "auth:actors:read", "auth:actors:write"
_SEE_ROLES, _CHANGE_ROLES = "auth:roles:read", "auth:roles:write"


def _identity(verified: Verified) -> dict[str, str]:
    return {
        "x-auth-actor-id": str(verified.actor_id),
        "x-auth-actor-type": verified.actor_type,
        "x-auth-permissions": ",".join(verified.permissions),
    }


async def routes(p: Process) -> list[Route]:
    """Return what the auth API serves."""
    own, others, oauth = await p.use(wiring.sign_in), await p.use(wiring.administration), await p.use(wiring.oauth)
    return [
        Route("POST", "/auth/v1/login", own.login, public=True),
        Route("POST", "/auth/v1/refresh", own.refresh, public=True),
        Route("POST", "/auth/v1/logout", own.logout, public=True),
        Route("GET", "/auth/v1/me", own.get_me),
        Route("PUT", "/auth/v1/me/password", own.change_password),
        Route("GET", "/auth/v1/me/sessions", own.list_my_sessions),
        Route("DELETE", "/auth/v1/me/sessions/{id}", own.end_my_session),
        Route("POST", "/auth/v1/me/totp", own.start_totp),
        Route("POST", "/auth/v1/me/totp/confirm", own.confirm_totp),
        Route("DELETE", "/auth/v1/me/totp", own.remove_totp),
        Route("GET", "/auth/v1/verify", own.verify, headers=_identity),
        Route("GET", "/auth/v1/actors", others.list_actors, permission=_SEE),
        Route("POST", "/auth/v1/actors", others.create_actor, permission=_CHANGE, status=201),
        Route("GET", "/auth/v1/actors/{id}", others.get_actor, permission=_SEE),
        Route("PATCH", "/auth/v1/actors/{id}", others.update_actor, permission=_CHANGE),
        Route("POST", "/auth/v1/actors/{id}/disable", others.disable_actor, permission=_CHANGE),
        Route("POST", "/auth/v1/actors/{id}/enable", others.enable_actor, permission=_CHANGE),
        Route("GET", "/auth/v1/actors/{id}/sessions", others.list_actor_sessions, permission=_SEE),
        Route("DELETE", "/auth/v1/actors/{id}/sessions", others.end_actor_sessions, permission=_CHANGE),
        Route("DELETE", "/auth/v1/actors/{id}/sessions/{session_id}", others.end_actor_session, permission=_CHANGE),
        Route("GET", "/auth/v1/actors/{id}/roles", others.get_actor_roles, permission=_SEE),
        Route("PUT", "/auth/v1/actors/{id}/roles", others.set_actor_roles, permission=_CHANGE_ROLES),
        Route("GET", "/auth/v1/actors/{id}/permissions", others.get_actor_permissions, permission=_SEE),
        Route("PUT", "/auth/v1/actors/{id}/permissions", others.set_actor_permissions, permission=_CHANGE_ROLES),
        Route("GET", "/auth/v1/actors/{id}/keys", others.list_api_keys, permission=_SEE),
        Route("POST", "/auth/v1/actors/{id}/keys", others.create_api_key, permission=_CHANGE, status=201),
        Route("DELETE", "/auth/v1/actors/{id}/keys/{key_id}", others.revoke_api_key, permission=_CHANGE),
        Route("GET", "/auth/v1/roles", others.list_roles, permission=_SEE_ROLES),
        Route("POST", "/auth/v1/roles", others.create_role, permission=_CHANGE_ROLES, status=201),
        Route("GET", "/auth/v1/roles/{id}", others.get_role, permission=_SEE_ROLES),
        Route("PATCH", "/auth/v1/roles/{id}", others.rename_role, permission=_CHANGE_ROLES),
        Route("DELETE", "/auth/v1/roles/{id}", others.delete_role, permission=_CHANGE_ROLES),
        Route("GET", "/auth/v1/roles/{id}/permissions", others.get_role_permissions, permission=_SEE_ROLES),
        Route("PUT", "/auth/v1/roles/{id}/permissions", others.set_role_permissions, permission=_CHANGE_ROLES),
        Route("GET", "/auth/v1/permissions", others.list_permissions, permission=_SEE_ROLES),
        Route("POST", "/oauth/token", oauth.token, public=True, codec=OAUTH),
        Route("POST", "/oauth/introspect", oauth.introspect, public=True, codec=OAUTH),
        Route("POST", "/oauth/revoke", oauth.revoke, public=True, codec=OAUTH),
        Route("GET", "/.well-known/oauth-authorization-server", oauth.metadata, public=True, cache_s=300),
        Route("GET", "/.well-known/jwks.json", own.get_jwks, public=True, cache_s=300),
    ]
