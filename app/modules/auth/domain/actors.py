"""Actors, their usernames and their passwords."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from annotated_types import Len

from app.kernel.actions.columns import Column, Columns
from app.kernel.errors import Conflict, Invalid, NotFound
from app.kernel.fields import Doc, Rule
from app.kernel.identifiers import uuid7
from app.kernel.product import NAME

ActorType = Literal["user", "admin", "service_acc"]

SUPERUSER = "auth:superuser"
"""The permission that implies all others."""

_USERNAME_LENGTH = range(3, 65)
_PASSWORD_LENGTH = range(8, 257)
Username = Annotated[
    str,
    Len(1, 256),
    Rule(r"^[^\x00-*,/:-?\[-^`{-\x7f]*$", min_length=3, max_length=64),
    Doc("Username, unique in any case.", "ada"),
]
"""A new username; its ASCII characters are letters, digits and . _ - @ +."""
Password = Annotated[
    str, Len(1, 1024), Rule(min_length=8, max_length=256), Doc("New password.", "violet-harbour-lantern")
]


RULES = "A password has 8 to 256 characters, is not among the most used, and does not contain the username."


class InvalidUsername(Invalid):
    code = "INVALID_USERNAME"
    title = "The username cannot be used"


class WeakPassword(Invalid):
    code = "WEAK_PASSWORD"
    title = "The password is too weak"


class UsernameExists(Conflict):
    code = "USERNAME_EXISTS"
    title = "The username is taken"


class ActorAlreadyDisabled(Conflict):
    code = "ACTOR_ALREADY_DISABLED"
    title = "The actor is disabled already"


class LastSuperuser(Conflict):
    code = "LAST_SUPERUSER"
    title = "The last active superuser must stay"
    hint = f"{NAME} auth create-superuser"


class ActorNotFound(NotFound):
    code = "ACTOR_NOT_FOUND"
    title = "There is no such actor"
    hint = f"{NAME} auth actors list"


@dataclass(frozen=True, slots=True)
class Actor:
    """A user, an admin or a service account."""

    id: UUID
    type: ActorType
    username: str
    is_superuser: bool
    is_active: bool
    last_active_at: datetime | None
    created_at: datetime
    updated_at: datetime

    columns: ClassVar[Columns] = (
        Column("actor", "id"),
        Column("username"),
        Column("type"),
        Column("state", lambda actor: "active" if actor.is_active else "disabled", is_state=True),
        Column("superuser", lambda actor: "yes" if actor.is_superuser else ""),
        Column("last active", "last_active_at"),
        Column("created at", extra=True),
    )

    @property
    def signs_in(self) -> bool:
        """Whether the actor can sign in with a password. A service account has API keys instead."""
        return self.is_active and self.type != "service_acc"


def new_actor(kind: ActorType, username: str, *, is_superuser: bool, is_active: bool = True) -> Actor:
    """Return a new actor."""
    now = datetime.now(UTC)
    return Actor(uuid7(), kind, username, is_superuser, is_active, None, now, now)


def check_may_have_password(kind: ActorType) -> None:
    """Raise Invalid for service accounts, which have API keys instead."""
    if kind == "service_acc":
        raise Invalid("a service account has no password", (("password", "a service account has none"),))


def folded(text: str) -> str:
    """Normalise a text for comparison (NFKC, case folded)."""
    return unicodedata.normalize("NFKC", text).casefold()


def username_key(username: str) -> str:
    """Return the unique form of a username (NFKC, case folded). Raises InvalidUsername."""
    key = folded(username)
    if len(username) not in _USERNAME_LENGTH or len(key) not in _USERNAME_LENGTH:
        raise InvalidUsername("a username has 3 to 64 characters", (("username", "3 to 64 characters"),))
    if not all(c.isalnum() or c in "._-@+" for c in key):
        message = "letters, digits and . _ - @ + only"
        raise InvalidUsername(f"a username has {message}", (("username", message),))
    if len({script for c in key if (script := _script(c))}) > 1:
        message = "letters of one script only"
        raise InvalidUsername(f"a username has {message}", (("username", message),))
    return key


_TOGETHER = {"HIRAGANA": "JAPANESE", "KATAKANA": "JAPANESE", "CJK": "JAPANESE"}


def _script(c: str) -> str:
    """Return the script of a letter. A single script excludes look-alikes (UTS 39)."""
    if not c.isalpha():
        return ""
    script = unicodedata.name(c, "").partition(" ")[0]
    return _TOGETHER.get(script, script)


def checked_password(password: str, username: str, field: str = "password") -> str:
    """Return the normalised password (NFC). Raises WeakPassword; does not check for common passwords."""
    normal = unicodedata.normalize("NFC", password)
    problem = ""
    if len(normal) not in _PASSWORD_LENGTH:
        problem = "8 to 256 characters"
    elif username.casefold() in normal.casefold():
        problem = "must not contain the username"
    elif any(unicodedata.category(c) == "Cs" or c == "\0" for c in normal):
        problem = "must be text"
    if problem:
        raise WeakPassword(f"the password: {problem}", ((field, problem),))
    return normal


def check_without_words(password: str, words: Iterable[str], field: str) -> None:
    """Raise WeakPassword if the password is too short without some guessable words, which are case folded."""
    left = password.casefold()
    for word in words:
        left = left.replace(word, "")
    if len(left) < _PASSWORD_LENGTH.start <= len(password):
        problem = "8 characters besides the names of the organisation, products and roles"
        raise WeakPassword(f"the password: {problem}", ((field, problem),))
