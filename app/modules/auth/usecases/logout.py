"""Sign out."""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import BearerToken, Kind, operation
from app.modules.auth.domain import Sessions, Tokens


@operation("auth.logout", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class Logout:
    """End the session of an access token."""

    db: Database
    sessions: Sessions
    tokens: Tokens

    async def __call__(self, token: BearerToken) -> None:
        """End the session, at once and in every process. Raises InvalidToken. Safe to repeat, also after expiry."""
        claims = self.tokens.claims(token, allow_expired=True)
        await self.sessions.end(self.db, claims.session_id)
