"""The token endpoint of OAuth 2 (RFC 6749, sections 4.4 and 6)."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Annotated

from annotated_types import Len

from app.kernel.audit import Audit
from app.kernel.db import Database, now
from app.kernel.identifiers import uuid7
from app.kernel.operations import BasicAuth, Caller, Kind, operation
from app.modules.auth.domain.oauth import (
    InvalidClient,
    InvalidGrant,
    InvalidRequest,
    InvalidScope,
    UnsupportedGrantType,
)
from app.modules.auth.domain.sessions import InvalidRefreshToken, RefreshTokenExpired, RefreshTokenReused, Session
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.tokens import Tokens
from app.modules.auth.usecases.oauth_client import OAuthClient
from app.modules.auth.usecases.refresh import Refresh, RefreshToken


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What the token endpoint understands; other parameters are ignored, as the standard demands."""

    grant_type: Annotated[str, Len(0, 64)] = ""
    scope: Annotated[str, Len(0, 4096)] = ""
    client_id: Annotated[str, Len(0, 256)] = ""
    client_secret: Annotated[str, Len(0, 256)] = field(default="", repr=False)
    refresh_token: Annotated[str, Len(0, 512)] = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """An access token, and how long it is valid."""

    access_token: str = field(repr=False)
    token_type: str
    expires_in: int
    scope: str | None = None
    refresh_token: str | None = field(default=None, repr=False)


@operation("auth.oauth_token", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class OAuthToken:
    """Give a service account an access token for its API key, or rotate a refresh token."""

    db: Database
    client: OAuthClient
    sessions: PostgresSessions
    tokens: Tokens
    refresh: Refresh
    audit: Audit
    ttl_s: float

    async def __call__(self, caller: Caller, basic: BasicAuth, request: TokenRequest) -> TokenResponse:
        """Return the token. Safe to repeat: each call is a session of its own, or within the grace of a refresh.

        Raises InvalidClient, InvalidGrant, InvalidRequest, InvalidScope, RateLimited, UnsupportedGrantType.
        """
        if request.grant_type == "client_credentials":
            if basic.username and request.client_secret:
                raise InvalidRequest("send the client secret once, in the header or in the body")
            given = basic if basic.username else BasicAuth(request.client_id, request.client_secret)
            return await self._client_credentials(caller, given, request.scope.split())
        if request.grant_type == "refresh_token":
            return await self._refreshed(caller, request.refresh_token)
        raise UnsupportedGrantType if request.grant_type else InvalidRequest("grant_type is missing")

    async def _client_credentials(self, caller: Caller, given: BasicAuth, asked: list[str]) -> TokenResponse:
        client, key_id = await self.client(caller, given)
        if client.actor_id is None:
            raise InvalidClient
        if excess := sorted(set(asked) - client.permissions):
            raise InvalidScope(f"this client may not {', '.join(excess)[:500]}")
        scope = sorted(set(asked) or client.permissions)
        at = await now(self.db)
        expires_at = at + timedelta(seconds=self.ttl_s)
        session = Session(uuid7(), client.actor_id, 0, at, expires_at, expires_at)
        issued = await self.tokens.issue(session, at)
        async with self.db.begin() as tx:
            if not await self.sessions.start(tx, session, caller.origin, scope=scope, api_key_id=key_id):
                raise InvalidClient  # disabled meanwhile
            done = replace(caller, actor_id=client.actor_id, session_id=session.id)
            await self.audit.record(tx, done, "auth.oauth_token", target=client.actor_id, scope=scope)
        return TokenResponse(issued.access_token, "Bearer", int(self.ttl_s), " ".join(scope))

    async def _refreshed(self, caller: Caller, refresh_token: str) -> TokenResponse:
        if not refresh_token:
            raise InvalidRequest("refresh_token is missing")
        try:
            issued = await self.refresh(caller, RefreshToken(refresh_token))
        except (InvalidRefreshToken, RefreshTokenExpired, RefreshTokenReused) as refusal:
            raise InvalidGrant(str(refusal)) from refusal
        return TokenResponse(issued.access_token, "Bearer", int(self.ttl_s), refresh_token=issued.refresh_token)
