"""Administration of roles."""

from dataclasses import dataclass
from typing import Annotated, ClassVar
from uuid import UUID

from annotated_types import Len

from app.kernel.actions import Caller, Database, Doc, Note, Transaction, change, read
from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries
from app.kernel.fields import IdOf
from app.kernel.identifiers import uuid7
from app.kernel.module import Catalogue
from app.kernel.paging import Cursor, Limit, Page, PageByName, after, next_cursor, page_of
from app.kernel.product import NAME
from app.modules.auth.domain.permissions import (
    AccessPreview,
    InvalidPermission,
    Permissions,
    Role,
    RoleNameExists,
    RoleNotFound,
    check_may_change_role,
    check_may_grant,
    checked_permissions,
    preview_for,
)
from app.modules.auth.postgres.roles import Roles

MOST_SHOWN = 100
RoleId = Annotated[UUID, Doc("Id of the role."), IdOf("role", ("auth.roles",), "auth roles list")]
RoleName = Annotated[str, Len(1, 64), Doc("Name of the role.", "operators")]


@dataclass(frozen=True, slots=True)
class RolesWanted:
    """Page of a list of roles."""

    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class RoleRef:
    """A role."""

    id: RoleId


@dataclass(frozen=True, slots=True)
class NewRole:
    """A new role."""

    name: RoleName


@dataclass(frozen=True, slots=True)
class RoleChange:
    """A new name for a role."""

    id: RoleId
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
class Permission:
    """A permission that a module declares."""

    name: str
    description: str

    columns: ClassVar[Columns] = (Column("permission", "name"), Column("description"))


@dataclass(frozen=True, slots=True)
class RoleAdministration:
    """List, show, create, rename and delete roles, and set their permissions."""

    roles: Roles
    catalogue: Catalogue

    @read(
        "auth.list_roles",
        GET="/auth/v1/roles",
        permission="auth:roles:read",
        command="auth roles list",
        empty=f"create one with {NAME} auth roles create --name NAME",
    )
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
        command="auth roles create",
        message="created the role {name} ({id})",
        examples=("--name support",),
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
        command="auth roles rename",
        message="{id} is named {name}",
        examples=("0190a1b2-c3d4-7e5f-8607-18293a4b5c6d --name support",),
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
        command="auth roles delete",
        confirm="Delete the role {id}, and revoke it from its actors?",
        message="deleted the role {id}",
        preview="auth.preview_delete_role",
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
        command="auth roles permissions",
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
        preview="auth.preview_role_permissions",
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

    @read(
        "auth.preview_role_permissions",
        POST="/auth/v1/roles/{id}/permissions/preview",
        permission="auth:roles:write",
        raises=(RoleNotFound, InvalidPermission),
    )
    async def preview_permissions_of_role(
        self, db: Database, caller: Caller, wanted: PermissionsWanted
    ) -> AccessPreview:
        """Preview who would gain and lose what if the permissions of a role were replaced.

        Refused as the change is.
        """
        permissions = checked_permissions(wanted.permissions, self.catalogue.permissions)
        held = await self._held(db, caller, wanted.id)
        check_may_grant(caller, permissions)
        return await self._preview(db, caller, wanted.id, permissions - held, held - permissions)

    @read(
        "auth.preview_delete_role",
        POST="/auth/v1/roles/{id}/delete/preview",
        permission="auth:roles:write",
        raises=(RoleNotFound,),
    )
    async def preview_delete(self, db: Database, caller: Caller, wanted: RoleRef) -> AccessPreview:
        """Preview who would lose what if a role were deleted.

        Refused as the change is.
        """
        held = await self._held(db, caller, wanted.id)
        return await self._preview(db, caller, wanted.id, frozenset(), held)

    async def _preview(
        self, db: Database, caller: Caller, role_id: UUID, added: frozenset[str], removed: frozenset[str]
    ) -> AccessPreview:
        count, affected = await self.roles.affected(db, role_id, added, removed, MOST_SHOWN)
        return preview_for(caller, AccessPreview(sorted(added), sorted(removed), count, affected))

    async def _held(self, db: Queries, caller: Caller, role_id: UUID) -> frozenset[str]:
        """Return the permissions of a role. Raises RoleNotFound; Denied if the caller lacks one of them."""
        await self.roles.get(db, role_id)
        held = await self.roles.permissions(db, [role_id])
        check_may_change_role(caller, held)
        return held

    async def _locked(self, tx: Transaction, caller: Caller, role_id: UUID) -> Role:
        """Return the role, locked. Raises RoleNotFound; Denied if it holds permissions that the caller lacks."""
        await self.roles.lock(tx, [role_id])
        await self._held(tx, caller, role_id)
        return await self.roles.get(tx, role_id)

    @read("auth.list_permissions", GET="/auth/v1/permissions", permission="auth:roles:read")
    async def list_permissions(self, wanted: PageByName) -> Page[Permission]:
        """List the permissions that modules declare, by name. `auth:superuser` cannot be granted."""
        found = [Permission(name, text) for name, text in self.catalogue.permissions.items()]
        return page_of(found, lambda permission: permission.name, wanted.limit, wanted.cursor)
