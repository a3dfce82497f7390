"""Administration of roles and permissions."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.actions import Caller, Database, Doc, Note, Transaction, change, read
from app.kernel.db import Queries
from app.kernel.identifiers import uuid7
from app.kernel.module import Catalogue
from app.kernel.paging import Cursor, Limit, Page, after, next_cursor
from app.modules.auth.actors import ActorRef
from app.modules.auth.domain.actors import SUPERUSER, Actor, ActorNotFound
from app.modules.auth.domain.permissions import (
    InvalidPermission,
    Permissions,
    Role,
    RoleNameExists,
    RoleNotFound,
    check_may_change_role,
    check_may_grant,
    checked_permissions,
)
from app.modules.auth.postgres.actors import Actors
from app.modules.auth.postgres.roles import Roles
from app.modules.auth.power import Power

RoleName = Annotated[str, Len(1, 64), Doc("Name of the role.", "operators")]


@dataclass(frozen=True, slots=True)
class RolesWanted:
    """Page of a list of roles."""

    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class RoleRef:
    """A role."""

    id: Annotated[UUID, Doc("Id of the role.")]


@dataclass(frozen=True, slots=True)
class NewRole:
    """A new role."""

    name: RoleName


@dataclass(frozen=True, slots=True)
class RoleChange:
    """A new name for a role."""

    id: Annotated[UUID, Doc("Id of the role.")]
    name: RoleName


@dataclass(frozen=True, slots=True)
class RolePermissions:
    """The permissions of a role."""

    permissions: list[str]


@dataclass(frozen=True, slots=True)
class PermissionsWanted:
    """Permissions that replace those of a role or an actor."""

    id: Annotated[UUID, Doc("Id of the role or the actor.")]
    permissions: Permissions


@dataclass(frozen=True, slots=True)
class ActorRolesWanted:
    """Roles that replace those of an actor."""

    id: Annotated[UUID, Doc("Id of the actor.")]
    role_ids: Annotated[list[UUID], Len(0, 100), Doc("Ids of the roles.")]


@dataclass(frozen=True, slots=True)
class ActorPermissions:
    """The permissions of an actor: from its roles, granted directly, and both together."""

    from_roles: list[str]
    direct: list[str]
    effective: list[str]


@dataclass(frozen=True, slots=True)
class Permission:
    """A permission that a module declares."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class RoleAdministration:
    """List, show, create, rename and delete roles; grant roles and permissions."""

    actors: Actors
    roles: Roles
    power: Power
    catalogue: Catalogue

    @read("auth.list_roles", GET="/auth/v1/roles", permission="auth:roles:read")
    async def list(self, db: Database, wanted: RolesWanted) -> Page[Role]:
        """List roles, newest first."""
        found = await self.roles.page(db, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

    @change(
        "auth.create_role",
        POST="/auth/v1/roles",
        permission="auth:roles:write",
        raises=(RoleNameExists,),
        status=201,
        notable=True,
    )
    async def create(self, tx: Transaction, new: NewRole, note: Note) -> Role:
        """Create a role without permissions. Not safe to repeat."""
        role = await self.roles.add(tx, uuid7(), new.name)
        if role is None:
            raise RoleNameExists(f"the name {new.name} is taken")
        note.target, note.details["name"] = role.id, role.name
        return role

    @read("auth.get_role", GET="/auth/v1/roles/{id}", permission="auth:roles:read", raises=(RoleNotFound,))
    async def get(self, db: Database, wanted: RoleRef) -> Role:
        """Show a role."""
        return await self.roles.get(db, wanted.id)

    @change(
        "auth.rename_role",
        PATCH="/auth/v1/roles/{id}",
        permission="auth:roles:write",
        raises=(RoleNotFound, RoleNameExists),
        notable=True,
    )
    async def rename(self, tx: Transaction, caller: Caller, wanted: RoleChange, note: Note) -> Role:
        """Rename a role. The caller must hold the permissions of the role. Safe to repeat."""
        await self._locked(tx, caller, wanted.id)
        role = await self.roles.rename(tx, wanted.id, wanted.name)
        if role is None:
            raise RoleNameExists(f"the name {wanted.name} is taken")
        note.details["name"] = role.name
        return role

    @change(
        "auth.delete_role",
        DELETE="/auth/v1/roles/{id}",
        permission="auth:roles:write",
        raises=(RoleNotFound,),
        notable=True,
    )
    async def delete(self, tx: Transaction, caller: Caller, wanted: RoleRef, note: Note) -> None:
        """Delete a role and revoke it from its actors, effective on their next request.

        The caller must hold the permissions of the role.
        """
        role = await self._locked(tx, caller, wanted.id)
        await self.roles.delete(tx, wanted.id)
        note.details["name"] = role.name

    @read(
        "auth.get_role_permissions",
        GET="/auth/v1/roles/{id}/permissions",
        permission="auth:roles:read",
        raises=(RoleNotFound,),
    )
    async def permissions_of_role(self, db: Database, wanted: RoleRef) -> RolePermissions:
        """List the permissions of a role."""
        await self.roles.get(db, wanted.id)
        return RolePermissions(sorted(await self.roles.permissions(db, [wanted.id])))

    @change(
        "auth.set_role_permissions",
        PUT="/auth/v1/roles/{id}/permissions",
        permission="auth:roles:write",
        raises=(RoleNotFound, InvalidPermission),
        notable=True,
    )
    async def set_permissions_of_role(
        self, tx: Transaction, caller: Caller, wanted: PermissionsWanted, note: Note
    ) -> RolePermissions:
        """Replace the permissions of a role, effective on the next request of its actors. Safe to repeat.

        The caller must hold both the current and the new permissions.
        """
        permissions = checked_permissions(wanted.permissions, self.catalogue.permissions)
        await self._locked(tx, caller, wanted.id)
        check_may_grant(caller, permissions)
        await self.roles.replace_permissions(tx, wanted.id, permissions)
        given = note.details["permissions"] = sorted(permissions)
        return RolePermissions(given)

    async def _locked(self, tx: Transaction, caller: Caller, role_id: UUID) -> Role:
        """Return the role, locked. Raises RoleNotFound; Denied if it holds permissions that the caller lacks."""
        found = await self.roles.lock(tx, [role_id])
        if not found:
            raise RoleNotFound
        check_may_change_role(caller, await self.roles.permissions(tx, [role_id]))
        return found[0]

    @read(
        "auth.get_actor_roles", GET="/auth/v1/actors/{id}/roles", permission="auth:actors:read", raises=(ActorNotFound,)
    )
    async def of_actor(self, db: Database, actor: ActorRef) -> Page[Role]:
        """List the roles of an actor."""
        await self.actors.get(db, actor.id)
        return Page(await self.roles.of_actor(db, actor.id))

    @change(
        "auth.set_actor_roles",
        PUT="/auth/v1/actors/{id}/roles",
        permission="auth:roles:write",
        raises=(ActorNotFound, RoleNotFound),
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
        "auth.get_actor_permissions",
        GET="/auth/v1/actors/{id}/permissions",
        permission="auth:actors:read",
        raises=(ActorNotFound,),
    )
    async def permissions_of_actor(self, db: Database, actor: ActorRef) -> ActorPermissions:
        """Show the permissions of an actor: from its roles, granted directly, and both together."""
        return await self._permissions(db, await self.actors.get(db, actor.id))

    @change(
        "auth.set_actor_permissions",
        PUT="/auth/v1/actors/{id}/permissions",
        permission="auth:roles:write",
        raises=(ActorNotFound, InvalidPermission),
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

    @read("auth.list_permissions", GET="/auth/v1/permissions", permission="auth:roles:read")
    async def list_permissions(self) -> Page[Permission]:
        """List the permissions that can be granted."""
        return Page([Permission(name, text) for name, text in sorted(self.catalogue.permissions.items())])

    async def _permissions(self, db: Queries, actor: Actor) -> ActorPermissions:
        of_roles, direct = await self.roles.held(db, actor.id)
        effective = of_roles | direct | ({SUPERUSER} if actor.is_superuser else set[str]())
        return ActorPermissions(sorted(of_roles), sorted(direct), sorted(effective))
