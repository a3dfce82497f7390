"""What other modules may use of auth: who holds a token, and what has happened.

Of the events, platform subscribes to ActorDisabled. The others have no subscriber here: they are published for the
modules of those who extend this platform, such as one that welcomes new users, so that auth need not be changed for it.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol
from uuid import UUID

from app.kernel.callers import Caller, Origin


class Portal(Protocol):
    """Auth, for others."""

    async def authenticate(self, token: str, origin: Origin) -> Caller:
        """Return who holds the access token. Raises Unauthenticated, Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class ActorCreated:
    """An actor was created."""

    event_type: ClassVar[str] = "auth.actor_created"
    actor_id: UUID
    type: str
    username: str


@dataclass(frozen=True, slots=True)
class ActorDisabled:
    """An actor was disabled; all of its sessions have ended."""

    event_type: ClassVar[str] = "auth.actor_disabled"
    actor_id: UUID


@dataclass(frozen=True, slots=True)
class ActorEnabled:
    """An actor was enabled again."""

    event_type: ClassVar[str] = "auth.actor_enabled"
    actor_id: UUID


@dataclass(frozen=True, slots=True)
class SessionStarted:
    """An actor signed in."""

    event_type: ClassVar[str] = "auth.session_started"
    actor_id: UUID
    session_id: UUID


@dataclass(frozen=True, slots=True)
class PasswordChanged:
    """The password of an actor was changed, or reset by somebody else."""

    event_type: ClassVar[str] = "auth.password_changed"
    actor_id: UUID
