"""Entities, rules and refusals of auth, and what it needs from outside."""

import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

from app.kernel.db import Queries, Transaction
from app.kernel.errors import Conflict, Invalid, Unauthenticated
from app.kernel.operations import Caller

ActorType = Literal["user", "admin", "service_acc"]

_USERNAME_LENGTH = range(3, 65)
_PASSWORD_LENGTH = range(8, 257)


class InvalidCredentials(Unauthenticated):
    """The username or the password is wrong."""

    code = "INVALID_CREDENTIALS"


class InvalidToken(Unauthenticated):
    """The access token is not valid."""

    code = "INVALID_TOKEN"


class TokenExpired(Unauthenticated):
    """The access token has expired."""

    code = "TOKEN_EXPIRED"


class SessionNotFound(Unauthenticated):
    """The session has ended."""

    code = "SESSION_NOT_FOUND"


class InvalidUsername(Invalid):
    """The username cannot be used."""

    code = "INVALID_USERNAME"


class WeakPassword(Invalid):
    """The password is too weak."""

    code = "WEAK_PASSWORD"


class UsernameExists(Conflict):
    """The username is taken."""

    code = "USERNAME_EXISTS"


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody or something that can act."""

    id: UUID
    type: ActorType
    username: str
    is_superuser: bool
    is_active: bool
    last_active_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in actor, on one device."""

    id: UUID
    actor_id: UUID
    refresh_counter: int
    idle_expires_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class AuthenticatedCaller(Caller):
    """A caller whose session lives, with the actor as it is now."""

    actor: Actor | None = None


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid access token says: who, and under which session. Never what they may do."""

    actor_id: UUID
    session_id: UUID


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token and when it expires."""

    value: str = field(repr=False)
    expires_at: datetime


def username_key(username: str) -> str:
    """Return what two spellings of one username have in common (NFKC, case folded). Raises InvalidUsername."""
    key = unicodedata.normalize("NFKC", username).casefold()
    if len(username) not in _USERNAME_LENGTH or len(key) not in _USERNAME_LENGTH:
        raise InvalidUsername("a username has 3 to 64 characters", (("username", "3 to 64 characters"),))
    if not all(c.isalnum() or c in "._-@+" for c in key):
        message = "letters, digits and . _ - @ + only"
        raise InvalidUsername(f"a username has {message}", (("username", message),))
    return key


def checked_password(password: str, username: str) -> str:
    """Return the password as it is hashed (NFC). Raises WeakPassword."""
    normal = unicodedata.normalize("NFC", password)
    problem = ""
    if len(normal) not in _PASSWORD_LENGTH:
        problem = "8 to 256 characters"
    elif username.casefold() in normal.casefold():
        problem = "must not contain the username"
    elif any(unicodedata.category(c) == "Cs" or c == "\0" for c in normal):
        problem = "must be text"
    if problem:
        raise WeakPassword(f"the password: {problem}", (("password", problem),))
    return normal


class Actors(Protocol):
    """Actors, stored."""

    async def add_superuser(
        self, tx: Transaction, actor_id: UUID, username: str, username_key: str, password_hash: str
    ) -> bool:
        """Store a new superuser; return whether it was added: False when the username is taken."""
        ...

    async def by_username(self, db: Queries, username_key: str) -> tuple[Actor, str | None] | None:
        """Return the actor and its password hash."""
        ...


class Sessions(Protocol):
    """Sessions, stored."""

    async def start(self, tx: Transaction, session: Session) -> None:
        """Store a new session, and that its actor is active now."""
        ...

    async def caller(self, db: Queries, claims: Claims) -> AuthenticatedCaller | None:
        """Return who holds a live session of an active actor, with the permissions of this moment."""
        ...

    async def touch(self, db: Queries, actor_id: UUID) -> None:
        """Note that the actor is active; to the minute, so that reading does not write every time."""
        ...

    async def end(self, db: Queries, session_id: UUID) -> bool:
        """End a session; return whether it was live."""
        ...


class Passwords(Protocol):
    """Password hashing."""

    async def hash(self, password: str) -> str:
        """Return the hash to store."""
        ...

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Return whether the password fits; takes as long when there is no hash."""
        ...


class Tokens(Protocol):
    """Access and refresh tokens."""

    def access(self, session: Session, now: datetime) -> IssuedToken:
        """Return a new access token."""
        ...

    def refresh(self, session: Session) -> IssuedToken:
        """Return the refresh token of the session's present counter."""
        ...

    def claims(self, token: str, *, allow_expired: bool = False) -> Claims:
        """Return what a token says. Raises InvalidToken, TokenExpired."""
        ...
