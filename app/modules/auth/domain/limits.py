"""Limits of password guessing. An attempt counts before its evaluation, so that concurrent ones stay in the limit."""

import hashlib
import hmac
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from app.kernel.errors import RateLimited
from app.modules.auth.domain.actors import InvalidUsername, username_key

WINDOW_S = 900.0
LOCKED_FROM = 10
REFUSED_FROM = 30
REFUSED_FROM_ADDRESS = 100
SPRAYED_FROM = 20
"""Number of names for which one password may fail within `SPRAY_WINDOW_S`."""
SPRAY_WINDOW_S = 3600.0


@dataclass(frozen=True, slots=True)
class Limit:
    """Maximum number of attempts under a key within a window.

    `locks_from` limits failed and pending attempts until that number has failed. With `once_for`, attempts with the
    same value count once within the window.
    """

    key: str
    most: int
    window_s: float = WINDOW_S
    locks_from: int = 0
    once_for: str = ""

    @property
    def noted_as(self) -> str:
        """The key that notes that an attempt with this `once_for` has counted."""
        return f"{self.key}:{self.once_for}" if self.once_for else ""


@dataclass(frozen=True, slots=True)
class Tally:
    """Failed and pending attempts under a key in the current window, and the seconds until its end."""

    failed: int = 0
    pending: int = 0
    ends_in_s: int = 0


@dataclass(frozen=True, slots=True)
class Try:
    """A pending attempt, its limits, and their tallies by key, which include the attempt."""

    limits: Sequence[Limit]
    tallies: Mapping[str, Tally]
    shared_as: str = ""
    """Its name in Redis, if it is pending there and not in PostgreSQL."""


ACTOR_KEY = "login:actor:"


def limits_of_sign_in(username: str, actor_id: UUID | None, address: str, password: str) -> list[Limit]:
    """Return the limits of a sign-in: by name, by address and by password (`limit_of_password`)."""
    by_name = limit_of_name(username, actor_id)
    return [
        Limit(by_name, REFUSED_FROM, locks_from=LOCKED_FROM),
        Limit(f"login:address:{address}", REFUSED_FROM_ADDRESS),
        Limit(password, SPRAYED_FROM, SPRAY_WINDOW_S, once_for=by_name),
    ]


def limits_of_second_step(actor_id: UUID, address: str) -> list[Limit]:
    """Return the limits of the second step of a sign-in: those of a sign-in without that of the password."""
    return limits_of_sign_in("", actor_id, address, "")[:2]


def limits_of_proof(actor_id: UUID) -> list[Limit]:
    """Return the limits of checks of a signed-in actor's password or second factor."""
    return [Limit(limit_of_name("", actor_id), LOCKED_FROM)]


def limits_of_client(address: str, client_id: str) -> list[Limit]:
    """Return the limits of an OAuth client. They are per address, so that other addresses cannot lock it out."""
    by_address = f"oauth:address:{address}"
    return [Limit(by_address, REFUSED_FROM_ADDRESS), Limit(f"{by_address}:{_digest(client_id)}", REFUSED_FROM)]


def limit_of_name(username: str, actor_id: UUID | None) -> str:
    """Return the key of failures for a name: the id of its actor, so that renaming does not reset the count."""
    if actor_id is not None:
        return f"{ACTOR_KEY}{actor_id}"
    try:
        key = username_key(username)
    except InvalidUsername:
        key = username
    return "login:name:" + _digest(key)


def limit_of_password(secret: bytes, password: str) -> str:
    """Return the key of failures of a password: 24 bits of a MAC, too few to recover the password."""
    normal = unicodedata.normalize("NFC", password).encode(errors="replace")
    return "login:password:" + hmac.digest(secret, normal, "sha256")[:3].hex()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def check(limits: Iterable[Limit], tallies: Mapping[str, Tally]) -> None:
    """Raise RateLimited if a limit is reached: until its window ends, or for a second because of pending attempts."""
    found = [(limit, tallies[limit.key]) for limit in limits if limit.key in tallies]
    if ends_in_s := max((tally.ends_in_s for limit, tally in found if tally.failed >= limit.most), default=0):
        raise RateLimited("too many failed attempts; try again later", retry_after_s=ends_in_s)
    if any(tally.failed + tally.pending >= limit.most for limit, tally in found):
        raise too_many_at_once()


def too_many_at_once() -> RateLimited:
    """Return the refusal of an attempt because of too many pending ones."""
    return RateLimited("too many concurrent attempts; try again", retry_after_s=1)
