"""See what somebody may do."""

from dataclasses import dataclass

from app.kernel.db import Database, Queries
from app.kernel.operations import Kind, operation
from app.modules.auth.domain.actors import SUPERUSER, Actor, ActorNotFound
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.usecases.get_actor import ActorRef


@dataclass(frozen=True, slots=True)
class ActorPermissions:
    """What an actor may do, and why."""

    from_roles: list[str]
    direct: list[str]
    effective: list[str]


@operation("auth.get_actor_permissions", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class GetActorPermissions:
    """Show what an actor may do: by its roles, directly, and together."""

    db: Database
    actors: PostgresActors
    roles: PostgresRoles

    async def __call__(self, actor: ActorRef) -> ActorPermissions:
        """Return the permissions. Raises ActorNotFound. Safe to repeat."""
        found = await self.actors.get(self.db, actor.id)
        if found is None:
            raise ActorNotFound
        return await permissions_of(self.db, found, self.roles)


async def permissions_of(db: Queries, actor: Actor, roles: PostgresRoles) -> ActorPermissions:
    """Return what an actor may do."""
    of_roles = await roles.permissions(db, [role.id for role in await roles.of_actor(db, actor.id)])
    direct = await roles.direct(db, actor.id)
    effective = of_roles | direct | ({SUPERUSER} if actor.is_superuser else set[str]())
    return ActorPermissions(sorted(of_roles), sorted(direct), sorted(effective))
