"""Turn an access token or an API key into who asks."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.kernel.db import Database
from app.kernel.operations import Origin
from app.modules.auth.domain.api_keys import PREFIX, ApiKeys, parsed
from app.modules.auth.domain.sessions import AuthenticatedCaller, InvalidToken, SessionNotFound, Sessions, Tokens

_ACTIVE_FRESH = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Find who holds a token, and what they may do at this moment. Part of every request, so no operation."""

    db: Database
    sessions: Sessions
    api_keys: ApiKeys
    tokens: Tokens

    async def __call__(self, token: str, origin: Origin) -> AuthenticatedCaller:
        """Return the caller. Raises InvalidToken, TokenExpired, SessionNotFound. Safe to repeat."""
        if token.startswith(PREFIX):
            return await self._by_key(token, origin)
        claims = await self.tokens.claims(token)
        caller = await self.sessions.caller(self.db, claims, origin)
        if caller is None or caller.actor is None:
            raise SessionNotFound
        if _is_stale(caller.actor.last_active_at):
            await self.sessions.touch(self.db, caller.actor.id)
        return caller

    async def _by_key(self, token: str, origin: Origin) -> AuthenticatedCaller:
        key = parsed(token)
        caller = None if key is None else await self.api_keys.caller(self.db, *key, origin)
        if key is None or caller is None or caller.actor is None:
            raise InvalidToken("the API key is not valid")
        if _is_stale(caller.actor.last_active_at):
            await self.api_keys.touch(self.db, key[0])
        return caller


def _is_stale(last_active_at: datetime | None) -> bool:
    return last_active_at is None or datetime.now(UTC) - last_active_at > _ACTIVE_FRESH
