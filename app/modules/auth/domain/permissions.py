"""Roles, permissions, and the rules for granting them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.callers import Caller
from app.kernel.errors import Conflict, Denied, Invalid, NotFound
from app.kernel.fields import Doc, Rule
from app.modules.auth.domain.actors import SUPERUSER

_FORM = re.compile(r"[a-z][a-z0-9_]*:[a-z][a-z0-9_]*:[a-z][a-z0-9_]*")
_Permission = Annotated[str, Rule(f"^{_FORM.pattern}$"), Doc("A permission.", "platform:jobs:read")]
Permissions = Annotated[list[_Permission], Len(0, 1000), Doc("Permissions.")]


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


def _missing(caller: Caller, permissions: Iterable[str]) -> str:
    return ", ".join(sorted(p for p in permissions if not caller.may(p)))
