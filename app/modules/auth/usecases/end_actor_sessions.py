"""End somebody's sessions."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.usecases.get_actor import ActorRef
from app.modules.auth.usecases.update_actor import locked_under_power


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many there were."""

    deleted_count: int


@operation("auth.end_actor_sessions", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class EndActorSessions:
    """End all sessions of an actor, at once and everywhere."""

    db: Database
    actors: PostgresActors
    sessions: PostgresSessions
    roles: PostgresRoles
    audit: Audit

    async def __call__(self, caller: Caller, actor: ActorRef) -> Deleted:
        """Return how many were live. Raises ActorNotFound, Denied. Safe to repeat."""
        async with self.db.begin() as tx:
            found, _ = await locked_under_power(tx, caller, actor.id, self.actors, self.roles)
            ended = await self.sessions.end_all(tx, found.id)
            await self.audit.record(tx, caller, "auth.end_actor_sessions", target=found.id, sessions_ended=ended)
        return Deleted(ended)
