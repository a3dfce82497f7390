"""Token revocation (RFC 7009)."""

from dataclasses import dataclass, replace
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import BasicAuth, Caller, Kind, operation
from app.modules.auth.domain.api_keys import parsed
from app.modules.auth.domain.sessions import InvalidRefreshToken, InvalidToken
from app.modules.auth.postgres.api_keys import PostgresApiKeys
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.tokens import Tokens
from app.modules.auth.usecases.oauth_client import OAuthClient
from app.modules.auth.usecases.oauth_introspect import TokenInQuestion


@dataclass(frozen=True, slots=True)
class Nothing:
    """An empty answer."""


@operation("auth.oauth_revoke", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class OAuthRevoke:
    """End the session of an access or refresh token, or revoke an API key.

    Whoever has it may do that: it is what to do with one that was found where it should not be.
    """

    db: Database
    client: OAuthClient
    sessions: PostgresSessions
    api_keys: PostgresApiKeys
    tokens: Tokens
    audit: Audit

    async def __call__(self, caller: Caller, basic: BasicAuth, given: TokenInQuestion) -> Nothing:
        """End it, at once and everywhere; a token that is not valid needs no revocation. Safe to repeat.

        Raises InvalidClient and RateLimited when credentials of a client are sent along, and are wrong.
        """
        if basic.username or basic.password or given.client_secret:
            await self.client(caller, basic if basic.username else BasicAuth(given.client_id, given.client_secret))
        if key := parsed(given.token):
            await self._revoke_key(caller, *key)
        elif session_id := await self._session_of(given.token):
            await self._end_session(caller, session_id)
        return Nothing()

    async def _session_of(self, token: str) -> UUID | None:
        try:
            return (await self.tokens.claims(token, allow_expired=True)).session_id
        except InvalidToken:
            try:
                return self.tokens.refresh_claims(token)[0]
            except InvalidRefreshToken:
                return None

    async def _end_session(self, caller: Caller, session_id: UUID) -> None:
        async with self.db.begin() as tx:
            session = await self.sessions.lock(tx, session_id)
            if session is not None and await self.sessions.end(tx, session.id, session.actor_id):
                asked = replace(caller, actor_id=session.actor_id, session_id=session.id)
                await self.audit.record(tx, asked, "auth.oauth_revoke", target=session.actor_id)

    async def _revoke_key(self, caller: Caller, key_id: UUID, secret_hash: bytes) -> None:
        async with self.db.begin() as tx:
            actor_id = await self.api_keys.revoke(tx, key_id, secret_hash)
            if actor_id is not None:
                asked = replace(caller, actor_id=actor_id)
                await self.audit.record(tx, asked, "auth.oauth_revoke", target=actor_id, key=str(key_id))
