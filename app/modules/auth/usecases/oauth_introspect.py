"""Token introspection (RFC 7662)."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Len

from app.kernel.errors import Unauthenticated
from app.kernel.operations import BasicAuth, Caller, Kind, operation
from app.modules.auth.domain.actors import SUPERUSER
from app.modules.auth.usecases.authenticate import Authenticate
from app.modules.auth.usecases.oauth_client import OAuthClient

SEE_TOKENS = "auth:tokens:read"


@dataclass(frozen=True, slots=True)
class TokenInQuestion:
    """The token that is asked about or to be revoked."""

    token: Annotated[str, Len(1, 4096)] = field(repr=False)
    client_id: Annotated[str, Len(0, 256)] = ""
    client_secret: Annotated[str, Len(0, 256)] = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Introspection:
    """Whether a token is good at this moment, and if so, for whom and what."""

    active: bool
    sub: str | None = None
    username: str | None = None
    scope: str | None = None
    token_type: str | None = None


@operation("auth.oauth_introspect", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class OAuthIntrospect:
    """Tell a client whether an access token or API key that was sent to it is good.

    Of its own, and with the permission `auth:tokens:read` of everybody's; others are answered like none at all
    (RFC 7662, section 4).
    """

    client: OAuthClient
    authenticate: Authenticate

    async def __call__(self, caller: Caller, basic: BasicAuth, asked: TokenInQuestion) -> Introspection:
        """Return what is known of the token, or only that it is not active. Safe to repeat.

        Raises InvalidClient, RateLimited.
        """
        client, _ = await self.client(
            caller, basic if basic.username else BasicAuth(asked.client_id, asked.client_secret)
        )
        try:
            holder = await self.authenticate(asked.token, caller.origin)
        except Unauthenticated:
            return Introspection(active=False)
        if holder.actor is None or not (holder.actor_id == client.actor_id or client.may(SEE_TOKENS)):
            return Introspection(active=False)
        held = holder.permissions | {SUPERUSER} if holder.is_superuser else holder.permissions
        return Introspection(True, str(holder.actor.id), holder.actor.username, " ".join(sorted(held)), "Bearer")
