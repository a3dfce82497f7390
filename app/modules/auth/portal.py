"""The interface of auth to other modules: authentication, names and events.

Platform subscribes to ActorDisabled. The other events have no subscriber here: they are published for modules that
extend this platform, such as one that welcomes new users.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol
from uuid import UUID

from app.kernel.callers import Caller, Origin


class Portal(Protocol):
    """Authentication for other modules."""

    async def authenticate(self, token: str, origin: Origin) -> Caller:
        """Return the caller that holds a token. Raises Unauthenticated, Unavailable."""
        ...


class Names(Protocol):
    """Names for lists that people read."""

    async def __call__(self, ids: Collection[UUID]) -> Mapping[UUID, str]:
        """Return the usernames of actors and the names of roles, of those ids that are one. Raises Unavailable."""
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
    """An actor was disabled, and its sessions ended."""

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
    """The password of an actor was changed or reset."""

    event_type: ClassVar[str] = "auth.password_changed"
    actor_id: UUID
