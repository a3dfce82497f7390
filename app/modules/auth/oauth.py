"""OAuth 2 for service accounts: tokens for API keys, introspection and revocation.

Actions take the database and commit themselves, because refusals are counted and recorded.
"""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.actions import BasicAuth, Caller, Database, Doc, change, read
from app.kernel.audit import Audit
from app.kernel.db import now
from app.kernel.errors import RateLimited, Unauthenticated
from app.kernel.identifiers import uuid7
from app.modules.auth.authentication import Authentication
from app.modules.auth.domain.actors import Actor
from app.modules.auth.domain.api_keys import parsed
from app.modules.auth.domain.limits import limits_of_client
from app.modules.auth.domain.oauth import (
    OAUTH,
    InvalidClient,
    InvalidGrant,
    InvalidRequest,
    InvalidScope,
    UnsupportedGrantType,
)
from app.modules.auth.domain.sessions import (
    AuthenticatedCaller,
    InvalidRefreshToken,
    InvalidToken,
    RefreshTokenExpired,
    RefreshTokenReused,
    Session,
)
from app.modules.auth.postgres.api_keys import ApiKeys
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sessions import Sessions
from app.modules.auth.settings import AuthSettings
from app.modules.auth.sign_in import RefreshToken, SignIn
from app.modules.auth.tokens import Tokens

SEE_TOKENS = "auth:tokens:read"
_METHODS = ["client_secret_basic", "client_secret_post"]

ClientId = Annotated[str, Len(0, 256), Doc("Client id, unless the Authorization header has it.")]
ClientSecret = Annotated[str, Len(0, 256), Doc("Client secret, unless the Authorization header has it.")]


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """Parameters of the token endpoint. Others are ignored (RFC 6749, section 3.2)."""

    grant_type: Annotated[str, Len(0, 64), Doc("client_credentials or refresh_token.", "client_credentials")] = ""
    scope: Annotated[str, Len(0, 4096), Doc("Permissions, separated by spaces.", "platform:jobs:read")] = ""
    client_id: ClientId = ""
    client_secret: ClientSecret = field(default="", repr=False)
    refresh_token: Annotated[str, Len(0, 512), Doc("Refresh token to exchange.")] = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """An access token, and its lifetime in seconds."""

    access_token: str = field(repr=False)
    token_type: str
    expires_in: int
    scope: str | None = None
    refresh_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TokenInQuestion:
    """The token to introspect or revoke."""

    token: Annotated[str, Len(1, 4096), Doc("Access token, refresh token or API key.")] = field(repr=False)
    client_id: ClientId = ""
    client_secret: ClientSecret = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Introspection:
    """Whether a token is active; if so, its holder and its permissions (RFC 7662, section 2.2)."""

    active: bool
    sub: str | None = None
    username: str | None = None
    scope: str | None = None
    token_type: str | None = None


@dataclass(frozen=True, slots=True)
class Nothing:
    """An empty response."""


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Authorization server metadata (RFC 8414, section 2)."""

    issuer: str
    token_endpoint: str
    introspection_endpoint: str
    revocation_endpoint: str
    jwks_uri: str
    grant_types_supported: list[str]
    response_types_supported: list[str]
    token_endpoint_auth_methods_supported: list[str]
    introspection_endpoint_auth_methods_supported: list[str]
    revocation_endpoint_auth_methods_supported: list[str]


@dataclass(frozen=True, slots=True)
class OAuthClients:
    """The service accounts behind client ids and secrets.

    The client id is the account's id or username, the client secret one of its API keys.
    """

    api_keys: ApiKeys
    limits: Limits
    audit: Audit

    async def check(self, db: Database, caller: Caller, given: BasicAuth) -> tuple[AuthenticatedCaller, UUID]:
        """Return the account with the key's permissions, and the key's id. Safe to repeat.

        Raises InvalidClient; RateLimited after too many failures from an address, or for a client from an address.
        """
        tried = await self.limits.reserve(db, limits_of_client(caller.origin.limited, given.username))
        key = parsed(given.password)
        async with self.limits.undone_unless_decided(db, tried):
            found = None if key is None else await self.api_keys.caller(db, *key)
        if key is None or found is None or given.username not in _client_ids(found.caller.actor):
            await self.limits.fail(db, tried)
            await self.audit.refused(db, caller, "auth.oauth_client", InvalidClient.code)
            raise InvalidClient
        await self.limits.give_back(db, tried)
        await self.api_keys.touch(db, key[0])
        return found.caller.at(caller.origin), key[0]


def _client_ids(actor: Actor) -> tuple[str, str]:
    return str(actor.id), actor.username


@dataclass(frozen=True, slots=True)
class OAuth:
    """The endpoints of OAuth 2."""

    clients: OAuthClients
    authentication: Authentication
    sign_in: SignIn
    sessions: Sessions
    api_keys: ApiKeys
    tokens: Tokens
    audit: Audit
    settings: AuthSettings

    @change(
        "auth.oauth_token",
        POST="/oauth/token",
        public=True,
        codec=OAUTH,
        raises=(InvalidClient, InvalidGrant, InvalidRequest, InvalidScope, RateLimited, UnsupportedGrantType),
    )
    async def token(self, db: Database, caller: Caller, basic: BasicAuth, request: TokenRequest) -> TokenResponse:
        """Issue an access token for a client's secret, or rotate a refresh token (RFC 6749, sections 4.4 and 6).

        Safe to repeat: each call with a secret starts a session; a refresh can be repeated within a few seconds.
        """
        if request.grant_type == "client_credentials":
            if basic.username and request.client_secret:
                raise InvalidRequest("send the client secret once, in the header or in the body")
            return await self._client_credentials(db, caller, _sent(basic, request), request.scope.split())
        if request.grant_type == "refresh_token":
            return await self._refreshed(db, caller, request.refresh_token)
        raise UnsupportedGrantType if request.grant_type else InvalidRequest("grant_type is missing")

    async def _client_credentials(
        self, db: Database, caller: Caller, given: BasicAuth, asked: list[str]
    ) -> TokenResponse:
        client, key_id = await self.clients.check(db, caller, given)
        if excess := sorted(set(asked) - client.permissions):
            raise InvalidScope(f"this client may not {', '.join(excess)[:500]}")
        scope = sorted(set(asked) or client.permissions)
        ttl_s = self.settings.access_token_ttl
        at = await now(db)
        expires_at = at + timedelta(seconds=ttl_s)
        session = Session(uuid7(), client.actor.id, 0, at, expires_at, expires_at)
        issued = await self.tokens.issue(session, at)
        async with db.begin() as tx:
            if not await self.sessions.start(tx, session, caller.origin, scope=scope, api_key_id=key_id):
                raise InvalidClient  # a concurrent request disabled the account
            done = replace(caller, actor_id=client.actor.id, session_id=session.id)
            await self.audit.record(tx, done, "auth.oauth_token", target=client.actor.id, scope=scope)
        return TokenResponse(issued.access_token, "Bearer", int(ttl_s), " ".join(scope))

    async def _refreshed(self, db: Database, caller: Caller, refresh_token: str) -> TokenResponse:
        if not refresh_token:
            raise InvalidRequest("refresh_token is missing")
        try:
            issued = await self.sign_in.refresh(db, caller, RefreshToken(refresh_token))
        except (InvalidRefreshToken, RefreshTokenExpired, RefreshTokenReused) as refusal:
            raise InvalidGrant(str(refusal)) from refusal
        ttl_s = int(self.settings.access_token_ttl)
        return TokenResponse(issued.access_token, "Bearer", ttl_s, refresh_token=issued.refresh_token)

    @change(
        "auth.oauth_introspect", POST="/oauth/introspect", public=True, codec=OAUTH, raises=(InvalidClient, RateLimited)
    )
    async def introspect(self, db: Database, caller: Caller, basic: BasicAuth, asked: TokenInQuestion) -> Introspection:
        """Introspect an access token or an API key (RFC 7662). Safe to repeat.

        A client can introspect tokens of its own account, and with the permission `auth:tokens:read` tokens of every
        actor. Other tokens are reported as inactive (RFC 7662, section 4).
        """
        client, _ = await self.clients.check(db, caller, _sent(basic, asked))
        try:
            holder = await self.authentication.authenticate(asked.token, caller.origin)
        except Unauthenticated:
            return Introspection(active=False)
        if not (holder.actor.id == client.actor.id or client.may(SEE_TOKENS)):
            return Introspection(active=False)
        return Introspection(True, str(holder.actor.id), holder.actor.username, " ".join(holder.held), "Bearer")

    @change("auth.oauth_revoke", POST="/oauth/revoke", public=True, codec=OAUTH, raises=(InvalidClient, RateLimited))
    async def revoke(self, db: Database, caller: Caller, basic: BasicAuth, given: TokenInQuestion) -> Nothing:
        """End the session of an access or refresh token, or revoke an API key (RFC 7009).

        Takes effect at once in every process. Client credentials are optional, and checked if they are sent. An
        invalid token is answered with success. Safe to repeat.
        """
        if basic.username or basic.password or given.client_secret:
            await self.clients.check(db, caller, _sent(basic, given))
        if key := parsed(given.token):
            await self._revoke_key(db, caller, *key)
        elif session_id := await self._session_of(given.token):
            await self._end_session(db, caller, session_id)
        return Nothing()

    async def _session_of(self, token: str) -> UUID | None:
        try:
            return (await self.tokens.claims(token, allow_expired=True)).session_id
        except InvalidToken:
            try:
                return self.tokens.refresh_claims(token)[0]
            except InvalidRefreshToken:
                return None

    async def _end_session(self, db: Database, caller: Caller, session_id: UUID) -> None:
        async with db.begin() as tx:
            session = await self.sessions.lock(tx, session_id)
            if session is not None and await self.sessions.end(tx, session.id, session.actor_id):
                asked = replace(caller, actor_id=session.actor_id, session_id=session.id)
                await self.audit.record(tx, asked, "auth.oauth_revoke", target=session.actor_id)

    async def _revoke_key(self, db: Database, caller: Caller, key_id: UUID, secret_hash: bytes) -> None:
        async with db.begin() as tx:
            actor_id = await self.api_keys.revoke(tx, key_id, secret_hash)
            if actor_id is not None:
                asked = replace(caller, actor_id=actor_id)
                await self.audit.record(tx, asked, "auth.oauth_revoke", target=actor_id, key=str(key_id))

    @read("auth.oauth_metadata", GET="/.well-known/oauth-authorization-server", public=True, cache_s=300)
    async def metadata(self) -> ServerMetadata:
        """Describe the OAuth 2 endpoints (RFC 8414). Safe to repeat."""
        at = self.settings.issuer.rstrip("/")
        return ServerMetadata(
            issuer=self.settings.issuer,
            token_endpoint=f"{at}/oauth/token",
            introspection_endpoint=f"{at}/oauth/introspect",
            revocation_endpoint=f"{at}/oauth/revoke",
            jwks_uri=f"{at}/.well-known/jwks.json",
            grant_types_supported=["client_credentials", "refresh_token"],
            response_types_supported=[],
            token_endpoint_auth_methods_supported=_METHODS,
            introspection_endpoint_auth_methods_supported=_METHODS,
            revocation_endpoint_auth_methods_supported=["none", *_METHODS],
        )


def _sent(basic: BasicAuth, given: TokenRequest | TokenInQuestion) -> BasicAuth:
    """Return the client credentials of the header, or else of the body."""
    return basic if basic.username else BasicAuth(given.client_id, given.client_secret)
