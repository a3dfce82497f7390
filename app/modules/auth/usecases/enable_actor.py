"""Let an actor sign in again."""

from dataclasses import dataclass, replace

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue import Queue
from app.modules.auth.domain.actors import Actor, ActorNotFound, username_key
from app.modules.auth.portal import ActorEnabled
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.usecases.get_actor import ActorRef
from app.modules.auth.usecases.update_actor import locked_under_power


@operation("auth.enable_actor", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class EnableActor:
    """Let an actor sign in and use its keys again."""

    db: Database
    actors: PostgresActors
    roles: PostgresRoles
    audit: Audit
    queue: Queue

    async def __call__(self, caller: Caller, actor: ActorRef) -> Actor:
        """Return the actor. Raises ActorNotFound, Denied. Safe to repeat."""
        async with self.db.begin() as tx:
            found, _ = await locked_under_power(tx, caller, actor.id, self.actors, self.roles)
            if found.is_active:
                return found
            enabled = await self.actors.save(tx, replace(found, is_active=True), username_key(found.username))
            if enabled is None:
                raise ActorNotFound
            await self.audit.record(tx, caller, "auth.enable_actor", target=found.id)
            await self.queue.publish(tx, ActorEnabled(found.id))
        return enabled
