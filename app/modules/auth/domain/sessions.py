"""Sessions and their tokens."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import ClassVar, Literal
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.callers import Caller, Origin
from app.kernel.errors import NotFound, Unauthenticated
from app.modules.auth.domain.actors import SUPERUSER, Actor

REFRESH_GRACE = timedelta(seconds=10)
"""How long the previous refresh token returns the same successor, in case the response was lost."""

MOST_SESSIONS = 100
"""Maximum number of sessions of an actor. A new one beyond it ends the least recently used one."""


class InvalidCredentials(Unauthenticated):
    code = "INVALID_CREDENTIALS"
    title = "The username or the password is wrong"


class InvalidToken(Unauthenticated):
    code = "INVALID_TOKEN"
    title = "The access token is not valid"


class TokenExpired(Unauthenticated):
    code = "TOKEN_EXPIRED"
    title = "The access token has expired"


class InvalidRefreshToken(Unauthenticated):
    code = "INVALID_REFRESH_TOKEN"
    title = "The refresh token is not valid"


class RefreshTokenReused(Unauthenticated):
    code = "REFRESH_TOKEN_REUSED"
    title = "The refresh token was used before; its session has been ended"


class RefreshTokenExpired(Unauthenticated):
    code = "REFRESH_TOKEN_EXPIRED"
    title = "The refresh token has expired"


class SessionNotFound(Unauthenticated):
    code = "SESSION_NOT_FOUND"
    title = "The session has ended"


class NoSuchSession(NotFound):
    code = "SESSION_NOT_FOUND"
    title = "There is no such session"


@dataclass(frozen=True, slots=True)
class Session:
    """A session of an actor."""

    id: UUID
    actor_id: UUID
    refresh_counter: int
    rotated_at: datetime
    idle_expires_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class StoredSession(Session):
    """A stored session, and the time of the database."""

    ended_at: datetime | None
    now: datetime

    def verdict(self, counter: int) -> Literal["rotate", "repeat", "reused", "expired", "unknown"]:
        """Return the verdict on a refresh token with this counter."""
        if self.ended_at is not None or counter > self.refresh_counter:
            return "unknown"
        if counter == self.refresh_counter - 1 and self.now - self.rotated_at <= REFRESH_GRACE:
            return "repeat"
        if counter < self.refresh_counter:
            return "reused"
        return "expired" if self.now >= min(self.idle_expires_at, self.expires_at) else "rotate"

    def rotated(self, idle_s: float) -> "StoredSession":
        """Return the session with its next counter and a new idle limit."""
        idle_expires_at = min(self.now + timedelta(seconds=idle_s), self.expires_at)
        counter = self.refresh_counter + 1
        return replace(self, refresh_counter=counter, rotated_at=self.now, idle_expires_at=idle_expires_at)


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A live session."""

    id: UUID
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    address: str
    user_agent: str
    is_current: bool

    columns: ClassVar[Columns] = (
        Column("session", "id"),
        Column("address"),
        Column("last used", "last_used_at"),
        Column("began", "created_at"),
        Column("expires at", extra=True),
        Column("current", lambda session: "yes" if session.is_current else "", extra=True),
        Column("user agent", extra=True),
    )


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """A live session of a browser, and how long ago its actor has proven who it is."""

    id: UUID
    actor_id: UUID
    confirmed_s: float
    has_second_factor: bool


@dataclass(frozen=True, slots=True)
class AuthenticatedCaller(Caller):
    """An authenticated caller, with its current actor."""

    actor: Actor = field(kw_only=True)

    def at(self, origin: Origin) -> "AuthenticatedCaller":
        """Return the caller with the origin of another request."""
        # `dataclasses.replace` costs three times as much
        return AuthenticatedCaller(
            self.actor_id, self.session_id, self.permissions, self.is_superuser, origin, actor=self.actor
        )

    @property
    def held(self) -> list[str]:
        """The sorted permissions of the caller, with `auth:superuser` for superusers."""
        return sorted(self.permissions | {SUPERUSER} if self.is_superuser else self.permissions)


@dataclass(frozen=True, slots=True)
class LoadedCaller:
    """A caller as the database has it."""

    caller: AuthenticatedCaller
    tags: tuple[str, ...]
    """What it depends on: the tags of the invalidations that change it."""
    fresh_s: float
    """Seconds until it expires, or until its activity must be stored again; 0 or less if it must be stored now."""


def caller_tags(proof: str, actor: Actor, roles: Iterable[UUID]) -> tuple[str, ...]:
    """Return the tags of a caller; `proof` is that of its session or API key."""
    return (proof, f"actor:{actor.id}", *(f"role:{role}" for role in roles))


@dataclass(frozen=True, slots=True)
class Claims:
    """The actor and the session of a valid access token. Permissions are not in tokens."""

    actor_id: UUID
    session_id: UUID


@dataclass(frozen=True, slots=True)
class SessionTokens:
    """The tokens of a session."""

    id: UUID
    token_type: str
    access_token: str = field(repr=False)
    access_token_expires_at: datetime
    refresh_token: str = field(repr=False)
    refresh_token_expires_at: datetime
