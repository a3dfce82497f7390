"""Turn an access token into who asks."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.kernel.db import Database
from app.kernel.operations import Origin
from app.modules.auth.domain.sessions import AuthenticatedCaller, SessionNotFound, Sessions, Tokens

_ACTIVE_FRESH = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Find who holds an access token, and what they may do at this moment. Part of every request, so no operation."""

    db: Database
    sessions: Sessions
    tokens: Tokens

    async def __call__(self, token: str, origin: Origin) -> AuthenticatedCaller:
        """Return the caller. Raises InvalidToken, TokenExpired, SessionNotFound. Safe to repeat."""
        claims = await self.tokens.claims(token)
        caller = await self.sessions.caller(self.db, claims, origin)
        if caller is None or caller.actor is None:
            raise SessionNotFound
        active = caller.actor.last_active_at
        if active is None or datetime.now(UTC) - active > _ACTIVE_FRESH:
            await self.sessions.touch(self.db, caller.actor.id)
        return caller
