"""See one's own sessions."""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import Page
from app.modules.auth.domain.sessions import AuthenticatedCaller, LiveSession, SessionNotFound
from app.modules.auth.postgres.sessions import PostgresSessions


@operation("auth.list_my_sessions", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListMySessions:
    """List the caller's live sessions."""

    db: Database
    sessions: PostgresSessions

    async def __call__(self, caller: AuthenticatedCaller) -> Page[LiveSession]:
        """Return the sessions. Safe to repeat."""
        if caller.actor_id is None:
            raise SessionNotFound
        return Page(await self.sessions.live(self.db, caller.actor_id, caller.session_id))
