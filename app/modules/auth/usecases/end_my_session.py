"""End one of one's own sessions."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.errors import NotFound
from app.kernel.operations import Kind, operation
from app.modules.auth.domain.sessions import AuthenticatedCaller, SessionNotFound
from app.modules.auth.postgres.sessions import PostgresSessions


@dataclass(frozen=True, slots=True)
class SessionRef:
    """A session."""

    id: UUID


class NoSuchSession(NotFound):
    """There is no such session."""

    code = "SESSION_NOT_FOUND"


@operation("auth.end_my_session", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class EndMySession:
    """End one of the caller's sessions, on whatever device."""

    db: Database
    sessions: PostgresSessions
    audit: Audit

    async def __call__(self, caller: AuthenticatedCaller, session: SessionRef) -> None:
        """End it, at once and everywhere. Raises NoSuchSession, also for the session of somebody else."""
        if caller.actor_id is None:
            raise SessionNotFound
        async with self.db.begin() as tx:
            if not await self.sessions.end(tx, session.id, caller.actor_id):
                raise NoSuchSession
            await self.audit.record(tx, caller, "auth.end_session", target=session.id)
