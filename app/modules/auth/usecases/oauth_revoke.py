"""Token revocation (RFC 7009)."""

from dataclasses import dataclass, replace

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.domain.sessions import InvalidRefreshToken, InvalidToken, Sessions, Tokens
from app.modules.auth.usecases.oauth_introspect import TokenInQuestion


@dataclass(frozen=True, slots=True)
class Nothing:
    """An empty answer."""


@operation("auth.oauth_revoke", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class OAuthRevoke:
    """End the session of an access or refresh token. Whoever has the token may do that."""

    db: Database
    sessions: Sessions
    tokens: Tokens
    audit: Audit

    async def __call__(self, caller: Caller, given: TokenInQuestion) -> Nothing:
        """End it, at once and everywhere; a token that is not valid needs no revocation. Safe to repeat."""
        try:
            session_id = (await self.tokens.claims(given.token, allow_expired=True)).session_id
        except InvalidToken:
            try:
                session_id, _ = self.tokens.refresh_claims(given.token)
            except InvalidRefreshToken:
                return Nothing()
        async with self.db.begin() as tx:
            session = await self.sessions.lock(tx, session_id)
            if session is not None and await self.sessions.end(tx, session.id, session.actor_id):
                asked = replace(caller, actor_id=session.actor_id, session_id=session.id)
                await self.audit.record(tx, asked, "auth.oauth_revoke", target=session.actor_id)
        return Nothing()
