"""Who am I?"""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.operations import Kind, operation
from app.modules.auth.domain.actors import SUPERUSER, Actor
from app.modules.auth.domain.sessions import AuthenticatedCaller, SessionNotFound


@dataclass(frozen=True, slots=True)
class Me:
    """The caller, as others see them."""

    actor: Actor
    session_id: UUID | None
    permissions: list[str]


@operation("auth.get_me", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class GetMe:
    """Show callers who they are and what they may do."""

    async def __call__(self, caller: AuthenticatedCaller) -> Me:
        """Return the caller as authenticated for this request. Safe to repeat."""
        if caller.actor is None:
            raise SessionNotFound
        granted = caller.permissions | {SUPERUSER} if caller.is_superuser else caller.permissions
        return Me(caller.actor, caller.session_id, sorted(granted))
