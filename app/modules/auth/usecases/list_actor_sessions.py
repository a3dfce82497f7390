"""See somebody's sessions."""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.pages import Page
from app.modules.auth.domain.actors import ActorNotFound
from app.modules.auth.domain.sessions import LiveSession
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.usecases.get_actor import ActorRef


@operation("auth.list_actor_sessions", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListActorSessions:
    """List the live sessions of an actor."""

    db: Database
    actors: PostgresActors
    sessions: PostgresSessions

    async def __call__(self, caller: Caller, actor: ActorRef) -> Page[LiveSession]:
        """Return the sessions. Raises ActorNotFound. Safe to repeat."""
        if await self.actors.get(self.db, actor.id) is None:
            raise ActorNotFound
        return Page(await self.sessions.live(self.db, actor.id, caller.session_id))
