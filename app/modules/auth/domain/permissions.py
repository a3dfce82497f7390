"""Roles, permissions, and the rules for granting them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, ClassVar
from uuid import UUID

from annotated_types import Len

from app.kernel.actions.columns import Column, Columns
from app.kernel.callers import Caller
from app.kernel.errors import Conflict, Denied, Invalid, NotFound
from app.kernel.fields import Choices, Doc, Rule
from app.modules.auth.domain.actors import SUPERUSER, Actor, ActorType

_FORM = re.compile(r"[a-z][a-z0-9_]*:[a-z][a-z0-9_]*:[a-z][a-z0-9_]*")
_Permission = Annotated[str, Rule(f"^{_FORM.pattern}$"), Doc("A permission.", "platform:jobs:read")]
Permissions = Annotated[
    list[_Permission],
    Len(0, 1000),
    Doc("Permissions."),
    Choices("auth.list_permissions", "name", ("name", "description"), excluded=frozenset({SUPERUSER})),
]


class RoleNotFound(NotFound):
    code = "ROLE_NOT_FOUND"
    title = "There is no such role"


class RoleNameExists(Conflict):
    code = "ROLE_NAME_EXISTS"
    title = "The name of the role is taken"


class InvalidPermission(Invalid):
    code = "INVALID_PERMISSION"
    title = "The permission cannot be granted"


@dataclass(frozen=True, slots=True)
class Role:
    """A named set of permissions."""

    id: UUID
    name: str
    created_at: datetime
    updated_at: datetime

    columns: ClassVar[Columns] = (
        Column("role", "id"),
        Column("name"),
        Column("created at", extra=True),
        Column("updated at"),
    )


@dataclass(frozen=True, slots=True)
class HeldPermission:
    """A permission of an actor: granted to the actor itself, through roles, or both."""

    permission: str
    is_direct: bool
    roles: list[str]

    columns: ClassVar[Columns] = (
        Column("permission"),
        Column("direct", lambda held: "yes" if held.is_direct else ""),
        Column("roles"),
    )


@dataclass(frozen=True, slots=True)
class AccessChange:
    """An actor, and the permissions that it gains and loses."""

    actor_id: UUID
    username: str
    type: ActorType
    is_active: bool
    gained: list[str]
    lost: list[str]

    columns: ClassVar[Columns] = (
        Column("actor", "actor_id"),
        Column("username"),
        Column("type", extra=True),
        Column("active", lambda change: "yes" if change.is_active else "no", extra=True),
        Column("gains", "gained"),
        Column("loses", "lost"),
    )


@dataclass(frozen=True, slots=True)
class AccessPreview:
    """What a change of roles or permissions would do.

    `added` and `removed` are the permissions that the role or the actor itself is given and that are taken from it.
    An actor is affected if it gains or loses a permission; one that holds it in another way, and a superuser, are not.
    `affected` has the first 100 of them, for callers with the permission auth:actors:read.
    """

    added: list[str]
    removed: list[str]
    affected_count: int
    affected: list[AccessChange]


def checked_permissions(asked: Iterable[str], catalogue: Mapping[str, str]) -> frozenset[str]:
    """Return the permissions as a set. Raises InvalidPermission for undeclared ones."""
    wanted = frozenset(asked)
    if SUPERUSER in wanted:
        raise InvalidPermission(f"{SUPERUSER} cannot be granted; set is_superuser on the actor")
    wrong = sorted(p for p in wanted if not _FORM.fullmatch(p) or p not in catalogue)
    if wrong:
        fields = tuple(("permissions", f"unknown permission {p[:100]}") for p in wrong)
        raise InvalidPermission("unknown permissions; see GET /auth/v1/permissions", fields)
    return wanted


def check_may_grant(caller: Caller, added: Iterable[str]) -> None:
    """Raise Denied unless the caller holds the permissions."""
    if missing := _missing(caller, added):
        raise Denied(f"you can only grant permissions that you hold; you lack {missing}")


def check_may_change_role(caller: Caller, held: Iterable[str]) -> None:
    """Raise Denied unless the caller holds the permissions of the role."""
    if missing := _missing(caller, held):
        raise Denied(f"the role has permissions that you lack: {missing}")


def check_has_power_over(caller: Caller, permissions: Iterable[str], *, is_superuser: bool) -> None:
    """Raise Denied unless the caller holds the permissions of the actor, which a changed actor could pass to it."""
    if is_superuser and not caller.is_superuser:
        raise Denied("only a superuser can change a superuser")
    if missing := _missing(caller, permissions):
        raise Denied(f"the actor has permissions that you lack: {missing}")


def preview_for(caller: Caller, preview: AccessPreview) -> AccessPreview:
    """Return the part of a preview that a caller may read."""
    return preview if caller.may("auth:actors:read") else replace(preview, affected=[])


def preview_of_actor(
    actor: Actor, kept: frozenset[str], before: frozenset[str], after: frozenset[str]
) -> AccessPreview:
    """Return what it does to an actor to replace permissions, if it keeps some in another way."""
    added, removed = after - before, before - after
    gained, lost = ([], []) if actor.is_superuser else (sorted(added - kept), sorted(removed - kept))
    change = AccessChange(actor.id, actor.username, actor.type, actor.is_active, gained, lost)
    affected = [change] if gained or lost else []
    return AccessPreview(sorted(added), sorted(removed), len(affected), affected)


def _missing(caller: Caller, permissions: Iterable[str]) -> str:
    return ", ".join(sorted(p for p in permissions if not caller.may(p)))
