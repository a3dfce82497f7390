"""See and end one's own sessions."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.errors import NotFound
from app.kernel.operations import Kind, operation
from app.modules.auth.domain.sessions import AuthenticatedCaller, LiveSession, SessionNotFound, Sessions


@dataclass(frozen=True, slots=True)
class LiveSessions:
    """Live sessions, newest first; they fit one page."""

    items: list[LiveSession]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class SessionRef:
    """A session."""

    id: UUID


class NoSuchSession(NotFound):
    """There is no such session."""

    code = "SESSION_NOT_FOUND"


@operation("auth.list_my_sessions", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListMySessions:
    """List the caller's live sessions."""

    db: Database
    sessions: Sessions

    async def __call__(self, caller: AuthenticatedCaller) -> LiveSessions:
        """Return the sessions. Safe to repeat."""
        if caller.actor_id is None:
            raise SessionNotFound
        return LiveSessions(await self.sessions.live(self.db, caller.actor_id, caller.session_id))


@operation("auth.end_my_session", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class EndMySession:
    """End one of the caller's sessions, on whatever device."""

    db: Database
    sessions: Sessions
    audit: Audit

    async def __call__(self, caller: AuthenticatedCaller, session: SessionRef) -> None:
        """End it, at once and everywhere. Raises NoSuchSession, also for the session of somebody else."""
        if caller.actor_id is None:
            raise SessionNotFound
        async with self.db.begin() as tx:
            if not await self.sessions.end(tx, session.id, caller.actor_id):
                raise NoSuchSession
            await self.audit.record(tx, caller, "auth.end_session", target=session.id)
