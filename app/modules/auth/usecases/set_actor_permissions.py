"""Give somebody permissions directly."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.domain.permissions import Permissions, check_may_grant, checked_permissions
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.usecases.get_actor_permissions import ActorPermissions, permissions_of
from app.modules.auth.usecases.update_actor import locked_under_power


@dataclass(frozen=True, slots=True)
class ActorPermissionsWanted:
    """The direct permissions an actor is to have, in place of those it has."""

    id: UUID
    permissions: Permissions


@operation("auth.set_actor_permissions", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class SetActorPermissions:
    """Replace the direct permissions of an actor; effective on its next request."""

    db: Database
    actors: PostgresActors
    roles: PostgresRoles
    audit: Audit
    catalogue: Mapping[str, str]

    async def __call__(self, caller: Caller, wanted: ActorPermissionsWanted) -> ActorPermissions:
        """Return what the actor may do now. Safe to repeat.

        Raises ActorNotFound, InvalidPermission; Denied unless the caller holds what is added.
        """
        permissions = checked_permissions(wanted.permissions, self.catalogue)
        async with self.db.begin() as tx:
            actor, _ = await locked_under_power(tx, caller, wanted.id, self.actors, self.roles)
            check_may_grant(caller, permissions - await self.roles.direct(tx, actor.id))
            await self.roles.replace_direct(tx, actor.id, permissions)
            given = sorted(permissions)
            await self.audit.record(tx, caller, "auth.set_actor_permissions", target=actor.id, permissions=given)
            return await permissions_of(tx, actor, self.roles)
