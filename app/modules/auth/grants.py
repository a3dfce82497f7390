"""Roles and permissions of actors."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.actions import Caller, Database, Doc, Note, Transaction, change, read
from app.kernel.db import Queries
from app.kernel.fields import Choices
from app.kernel.module import Catalogue
from app.kernel.paging import Limit, NameCursor, Page, page_of
from app.modules.auth.actors import ActorId, ActorRef
from app.modules.auth.domain.actors import SUPERUSER, Actor, ActorNotFound
from app.modules.auth.domain.permissions import (
    AccessPreview,
    HeldPermission,
    InvalidPermission,
    Role,
    RoleNotFound,
    check_may_grant,
    checked_permissions,
    preview_for,
    preview_of_actor,
)
from app.modules.auth.postgres.actors import Actors
from app.modules.auth.postgres.roles import Roles
from app.modules.auth.power import Power
from app.modules.auth.roles import PermissionsWanted


@dataclass(frozen=True, slots=True)
class RolesOfActorWanted:
    """An actor, and a page of its roles."""

    id: ActorId
    limit: Limit = 20
    cursor: NameCursor | None = None


@dataclass(frozen=True, slots=True)
class ActorRolesWanted:
    """Roles that replace those of an actor."""

    id: ActorId
    role_ids: Annotated[list[UUID], Len(0, 100), Doc("Ids of the roles."), Choices("auth.list_roles", "id", ("name",))]


@dataclass(frozen=True, slots=True)
class ActorPermissions:
    """The permissions of an actor: from its roles, granted directly, and both together.

    `held` has the effective ones, each with the roles that it comes from.
    """

    from_roles: list[str]
    direct: list[str]
    effective: list[str]
    held: list[HeldPermission]

    @property
    def permissions(self) -> list[str]:
        """Those that a change of the actor's permissions replaces."""
        return self.direct


@dataclass(frozen=True, slots=True)
class GrantAdministration:
    """Show, set and preview the roles and permissions of actors."""

    actors: Actors
    roles: Roles
    power: Power
    catalogue: Catalogue

    @read(
        "auth.get_actor_roles",
        GET="/auth/v1/actors/{id}/roles",
        permission="auth:actors:read",
        raises=(ActorNotFound,),
        command="auth actors roles",
    )
    async def of_actor(self, db: Database, wanted: RolesOfActorWanted) -> Page[Role]:
        """List the roles of an actor by name."""
        await self.actors.get(db, wanted.id)
        found = await self.roles.of_actor(db, wanted.id)
        return page_of(found, lambda role: role.name, wanted.limit, wanted.cursor)

    @change(
        "auth.set_actor_roles",
        PUT="/auth/v1/actors/{id}/roles",
        permission="auth:roles:write",
        raises=(ActorNotFound, RoleNotFound),
        preview="auth.preview_actor_roles",
        notable=True,
    )
    async def set_of_actor(self, tx: Transaction, caller: Caller, wanted: ActorRolesWanted, note: Note) -> Page[Role]:
        """Replace the roles of an actor, effective on its next request. Safe to repeat.

        The caller must hold the permissions of the added roles.
        """
        await self.power.over(tx, caller, wanted.id)
        before = {role.id for role in await self.roles.of_actor(tx, wanted.id)}
        roles = await self.roles.lock(tx, wanted.role_ids)
        if len(roles) != len(set(wanted.role_ids)):
            raise RoleNotFound
        added = {role.id for role in roles} - before
        check_may_grant(caller, await self.roles.permissions(tx, added))
        await self.roles.replace_of_actor(tx, wanted.id, (role.id for role in roles))
        note.details["roles"] = sorted(role.name for role in roles)
        return Page(await self.roles.of_actor(tx, wanted.id))

    @read(
        "auth.preview_actor_roles",
        POST="/auth/v1/actors/{id}/roles/preview",
        permission="auth:roles:write",
        raises=(ActorNotFound, RoleNotFound),
    )
    async def preview_of_actor(self, db: Database, caller: Caller, wanted: ActorRolesWanted) -> AccessPreview:
        """Preview what an actor would gain and lose if its roles were replaced.

        Refused as the change is.
        """
        actor = await self.power.check(db, caller, wanted.id)
        before = {role.id for role in await self.roles.of_actor(db, wanted.id)}
        roles = await self.roles.named(db, wanted.role_ids)
        check_may_grant(caller, await self.roles.permissions(db, roles - before))
        of_roles, direct = await self.roles.held(db, wanted.id)
        after = await self.roles.permissions(db, roles)
        return preview_for(caller, preview_of_actor(actor, direct, of_roles, after))

    @read(
        "auth.get_actor_permissions",
        GET="/auth/v1/actors/{id}/permissions",
        permission="auth:actors:read",
        raises=(ActorNotFound,),
        command="auth actors permissions",
    )
    async def permissions_of_actor(self, db: Database, actor: ActorRef) -> ActorPermissions:
        """Show the permissions of an actor: from which of its roles, granted directly, and all together."""
        return await self._permissions(db, await self.actors.get(db, actor.id))

    @change(
        "auth.set_actor_permissions",
        PUT="/auth/v1/actors/{id}/permissions",
        permission="auth:roles:write",
        raises=(ActorNotFound, InvalidPermission),
        preview="auth.preview_actor_permissions",
        notable=True,
    )
    async def set_permissions_of_actor(
        self, tx: Transaction, caller: Caller, wanted: PermissionsWanted, note: Note
    ) -> ActorPermissions:
        """Replace the direct permissions of an actor, effective on its next request. Safe to repeat.

        The caller must hold the added permissions.
        """
        permissions = checked_permissions(wanted.permissions, self.catalogue.permissions)
        found = await self.power.over(tx, caller, wanted.id)
        _, direct = await self.roles.held(tx, wanted.id)
        check_may_grant(caller, permissions - direct)
        await self.roles.replace_direct(tx, wanted.id, permissions)
        note.details["permissions"] = sorted(permissions)
        return await self._permissions(tx, found.actor)

    @read(
        "auth.preview_actor_permissions",
        POST="/auth/v1/actors/{id}/permissions/preview",
        permission="auth:roles:write",
        raises=(ActorNotFound, InvalidPermission),
    )
    async def preview_permissions_of_actor(
        self, db: Database, caller: Caller, wanted: PermissionsWanted
    ) -> AccessPreview:
        """Preview what an actor would gain and lose if its direct permissions were replaced.

        Refused as the change is.
        """
        permissions = checked_permissions(wanted.permissions, self.catalogue.permissions)
        actor = await self.power.check(db, caller, wanted.id)
        of_roles, direct = await self.roles.held(db, wanted.id)
        check_may_grant(caller, permissions - direct)
        return preview_for(caller, preview_of_actor(actor, of_roles, direct, permissions))

    async def _permissions(self, db: Queries, actor: Actor) -> ActorPermissions:
        held = await self.roles.held_through(db, actor.id)
        of_roles = [each.permission for each in held if each.roles]
        direct = [each.permission for each in held if each.is_direct]
        if actor.is_superuser:
            held = sorted(
                [*held, HeldPermission(SUPERUSER, is_direct=True, roles=[])], key=lambda each: each.permission
            )
        return ActorPermissions(of_roles, direct, [each.permission for each in held], held)
