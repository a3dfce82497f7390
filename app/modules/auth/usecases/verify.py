"""Is this request allowed? For reverse proxies in front of services that know nothing of auth."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.errors import Denied
from app.kernel.operations import Kind, operation
from app.modules.auth.domain.actors import SUPERUSER, ActorType
from app.modules.auth.domain.sessions import AuthenticatedCaller, SessionNotFound


@dataclass(frozen=True, slots=True)
class Requirement:
    """The permission that the request needs; none: a live session is enough."""

    permission: Annotated[str, Len(1, 128)] | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """Who asks, as far as the service behind the proxy needs to know."""

    actor_id: UUID
    actor_type: ActorType
    permissions: list[str]


@operation("auth.verify", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class Verify:
    """Tell a reverse proxy whether to let a request through, and on whose behalf it is."""

    async def __call__(self, caller: AuthenticatedCaller, required: Requirement) -> Verified:
        """Return who asks. Raises Denied without the permission. Safe to repeat."""
        if caller.actor is None:
            raise SessionNotFound
        if required.permission is not None and not caller.may(required.permission):
            raise Denied(f"this needs the permission {required.permission}")
        held = caller.permissions | {SUPERUSER} if caller.is_superuser else caller.permissions
        return Verified(caller.actor.id, caller.actor.type, sorted(held))
