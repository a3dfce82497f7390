"""End one of somebody's sessions."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.usecases.end_my_session import NoSuchSession
from app.modules.auth.usecases.update_actor import locked_under_power


@dataclass(frozen=True, slots=True)
class ActorSessionRef:
    """A session of an actor."""

    id: UUID
    session_id: UUID


@operation("auth.end_actor_session", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class EndActorSession:
    """End one session of an actor, at once and everywhere."""

    db: Database
    actors: PostgresActors
    sessions: PostgresSessions
    roles: PostgresRoles
    audit: Audit

    async def __call__(self, caller: Caller, session: ActorSessionRef) -> None:
        """End it. Raises ActorNotFound, Denied; NoSuchSession, also when it has ended or is somebody else's."""
        async with self.db.begin() as tx:
            actor, _ = await locked_under_power(tx, caller, session.id, self.actors, self.roles)
            if not await self.sessions.end(tx, session.session_id, actor.id):
                raise NoSuchSession
            await self.audit.record(
                tx, caller, "auth.end_actor_session", target=actor.id, session=str(session.session_id)
            )
