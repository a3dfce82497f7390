"""Stop an actor."""

from dataclasses import dataclass, replace
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue import Queue
from app.modules.auth.domain.actors import ActorAlreadyDisabled, LastSuperuser, username_key
from app.modules.auth.portal import ActorDisabled
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.usecases.get_actor import ActorRef
from app.modules.auth.usecases.update_actor import locked_under_power


@dataclass(frozen=True, slots=True)
class Disabled:
    """Who was disabled, and how many sessions that ended."""

    id: UUID
    sessions_ended: int


@operation("auth.disable_actor", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class DisableActor:
    """Stop an actor from signing in and using its keys, at once and everywhere."""

    db: Database
    actors: PostgresActors
    sessions: PostgresSessions
    roles: PostgresRoles
    audit: Audit
    queue: Queue

    async def __call__(self, caller: Caller, actor: ActorRef) -> Disabled:
        """Return what was ended. Raises ActorNotFound, Denied, ActorAlreadyDisabled, LastSuperuser."""
        async with self.db.begin() as tx:
            found, is_last = await locked_under_power(tx, caller, actor.id, self.actors, self.roles)
            if not found.is_active:
                raise ActorAlreadyDisabled
            if is_last:
                raise LastSuperuser
            await self.actors.save(tx, replace(found, is_active=False), username_key(found.username))
            ended = await self.sessions.end_all(tx, found.id)
            await self.audit.record(tx, caller, "auth.disable_actor", target=found.id, sessions_ended=ended)
            await self.queue.publish(tx, ActorDisabled(found.id))
        return Disabled(found.id, ended)
