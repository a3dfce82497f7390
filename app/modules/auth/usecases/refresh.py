"""Exchange a refresh token for new tokens."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Annotated

from annotated_types import Len

from app.kernel.audit import Audit
from app.kernel.db import Database, Transaction
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.domain.sessions import (
    InvalidRefreshToken,
    RefreshTokenExpired,
    RefreshTokenReused,
    Session,
    SessionTokens,
    StoredSession,
)
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.tokens import Tokens


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token as it was issued."""

    refresh_token: Annotated[str, Len(1, 512)] = field(repr=False)


@operation("auth.refresh", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class Refresh:
    """Rotate a session's refresh token (RFC 9700, section 4.14.2).

    The current token is exchanged. The one just before it, within a few seconds, gets the same successor again: its
    answer was lost. Anything older was stolen or is being replayed, and ends the session.
    """

    db: Database
    sessions: PostgresSessions
    tokens: Tokens
    audit: Audit
    idle_s: float

    async def __call__(self, caller: Caller, given: RefreshToken) -> SessionTokens:
        """Return the session with new tokens.

        Raises InvalidRefreshToken, RefreshTokenExpired; RefreshTokenReused after having ended the session. Safe to
        repeat within the grace.
        """
        session_id, counter = self.tokens.refresh_claims(given.refresh_token)
        refusal: InvalidRefreshToken | RefreshTokenExpired | RefreshTokenReused
        async with self.db.begin() as tx:
            session = await self.sessions.lock(tx, session_id)
            match session.verdict(counter) if session else "unknown":
                case "rotate" if session:
                    return await self.tokens.issue(await self._rotated(tx, session), session.now)
                case "repeat" if session:
                    return await self.tokens.issue(session, session.now)
                case "reused" if session:
                    await self.sessions.end(tx, session.id, session.actor_id)
                    asked = replace(caller, actor_id=session.actor_id, session_id=session.id)
                    await self.audit.record(tx, asked, "auth.refresh", outcome=RefreshTokenReused.code)
                    refusal = RefreshTokenReused()
                case "expired":
                    refusal = RefreshTokenExpired()
                case _:
                    refusal = InvalidRefreshToken()
        # raised only now, so that ending the session is committed although the request fails
        raise refusal

    async def _rotated(self, tx: Transaction, session: StoredSession) -> Session:
        now = session.now
        idle_expires_at = min(now + timedelta(seconds=self.idle_s), session.expires_at)
        rotated = replace(
            session, refresh_counter=session.refresh_counter + 1, rotated_at=now, idle_expires_at=idle_expires_at
        )
        await self.sessions.rotate(tx, rotated)
        return rotated
