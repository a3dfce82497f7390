"""See an actor."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.modules.auth.domain.actors import Actor, ActorNotFound
from app.modules.auth.postgres.actors import PostgresActors


@dataclass(frozen=True, slots=True)
class ActorRef:
    """An actor."""

    id: UUID


@operation("auth.get_actor", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class GetActor:
    """See an actor."""

    db: Database
    actors: PostgresActors

    async def __call__(self, wanted: ActorRef) -> Actor:
        """Return the actor. Raises ActorNotFound. Safe to repeat."""
        found = await self.actors.get(self.db, wanted.id)
        if found is None:
            raise ActorNotFound
        return found
