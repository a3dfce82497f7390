"""Who holds an access token or an API key: part of every request, and the portal for other modules."""

from dataclasses import dataclass

from app.kernel.callers import Origin
from app.kernel.db import Database
from app.modules.auth.domain.api_keys import PREFIX, parsed
from app.modules.auth.domain.sessions import AuthenticatedCaller, InvalidToken, SessionNotFound
from app.modules.auth.postgres.api_keys import ApiKeys
from app.modules.auth.postgres.sessions import Sessions
from app.modules.auth.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Authentication:
    """Find who holds a token, and what they may do at this moment."""

    db: Database
    sessions: Sessions
    api_keys: ApiKeys
    tokens: Tokens

    async def authenticate(self, token: str, origin: Origin) -> AuthenticatedCaller:
        """Return the caller. Raises InvalidToken, TokenExpired, SessionNotFound. Safe to repeat."""
        if token.startswith(PREFIX):
            return await self._by_key(token, origin)
        claims = await self.tokens.claims(token)
        caller = await self.sessions.caller(self.db, claims, origin)
        if caller is None:
            raise SessionNotFound
        if not caller.is_noted:
            await self.sessions.touch(self.db, caller.actor.id)
        return caller

    async def _by_key(self, token: str, origin: Origin) -> AuthenticatedCaller:
        key = parsed(token)
        caller = None if key is None else await self.api_keys.caller(self.db, *key, origin)
        if key is None or caller is None:
            raise InvalidToken("the API key is not valid")
        if not caller.is_noted:
            await self.api_keys.touch(self.db, key[0])
        return caller
