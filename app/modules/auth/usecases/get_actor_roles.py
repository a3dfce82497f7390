"""See somebody's roles."""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import Page
from app.modules.auth.domain.actors import ActorNotFound
from app.modules.auth.domain.permissions import Role
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.usecases.get_actor import ActorRef


@operation("auth.get_actor_roles", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class GetActorRoles:
    """List the roles of an actor."""

    db: Database
    actors: PostgresActors
    roles: PostgresRoles

    async def __call__(self, actor: ActorRef) -> Page[Role]:
        """Return the roles. Raises ActorNotFound. Safe to repeat."""
        if await self.actors.get(self.db, actor.id) is None:
            raise ActorNotFound
        return Page(await self.roles.of_actor(self.db, actor.id))
