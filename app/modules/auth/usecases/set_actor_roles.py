"""Give somebody roles."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.pages import Page
from app.modules.auth.domain.permissions import Role, RoleNotFound, check_may_grant
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.usecases.update_actor import locked_under_power


@dataclass(frozen=True, slots=True)
class ActorRolesWanted:
    """The roles an actor is to have, in place of those it has."""

    id: UUID
    role_ids: Annotated[list[UUID], Len(0, 100)]


@operation("auth.set_actor_roles", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class SetActorRoles:
    """Replace the roles of an actor; effective on its next request."""

    db: Database
    actors: PostgresActors
    roles: PostgresRoles
    audit: Audit

    async def __call__(self, caller: Caller, wanted: ActorRolesWanted) -> Page[Role]:
        """Return the roles. Raises ActorNotFound, RoleNotFound; Denied unless the caller holds what is added."""
        async with self.db.begin() as tx:
            actor, _ = await locked_under_power(tx, caller, wanted.id, self.actors, self.roles)
            before = {role.id for role in await self.roles.of_actor(tx, actor.id)}
            roles = await self.roles.lock(tx, wanted.role_ids)
            if len(roles) != len(set(wanted.role_ids)):
                raise RoleNotFound
            added = {role.id for role in roles} - before
            check_may_grant(caller, await self.roles.permissions(tx, added))
            await self.roles.replace_of_actor(tx, actor.id, (role.id for role in roles))
            names = sorted(role.name for role in roles)
            await self.audit.record(tx, caller, "auth.set_actor_roles", target=actor.id, roles=names)
            return Page(await self.roles.of_actor(tx, actor.id))
