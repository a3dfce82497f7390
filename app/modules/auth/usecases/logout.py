"""Sign out."""

from dataclasses import dataclass, replace

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import BearerToken, Caller, Kind, operation
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.tokens import Tokens


@operation("auth.logout", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class Logout:
    """End the session of an access token."""

    db: Database
    sessions: PostgresSessions
    tokens: Tokens
    audit: Audit

    async def __call__(self, caller: Caller, token: BearerToken) -> None:
        """End the session, at once and in every process. Raises InvalidToken. Safe to repeat, also after expiry."""
        claims = await self.tokens.claims(token, allow_expired=True)
        asked = replace(caller, actor_id=claims.actor_id, session_id=claims.session_id)
        async with self.db.begin() as tx:
            if await self.sessions.end(tx, claims.session_id, claims.actor_id):
                await self.audit.record(tx, asked, "auth.logout")
