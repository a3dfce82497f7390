"""Sessions of browsers: what the console asks of the module that authenticates."""

from dataclasses import dataclass, field
from typing import Protocol

from app.kernel.callers import Caller, Origin


@dataclass(frozen=True, slots=True)
class Visitor:
    """The caller behind a browser, and how long ago it has proven who it is."""

    caller: Caller
    name: str
    confirmed_s: float
    has_second_factor: bool


@dataclass(frozen=True, slots=True)
class SignedIn:
    """The result of a sign-in: the token of the session, or of its second step (`is_complete` is False)."""

    token: str = field(repr=False)
    is_complete: bool = True


class BrowserSessions(Protocol):
    """Sessions of browsers, each named by an opaque token of 256 bits. A module provides them."""

    async def sign_in(self, origin: Origin, username: str, password: str) -> SignedIn:
        """Start a session, or the second step of its sign-in. Raises Unauthenticated, Unavailable."""
        ...

    async def second_step(self, origin: Origin, token: str, otp: str) -> SignedIn:
        """Start a session with the token of a second step and a code. Raises Unauthenticated, Unavailable."""
        ...

    async def find(self, origin: Origin, token: str, *, is_active: bool) -> Visitor:
        """Return the visitor of a token. Raises Unauthenticated, Unavailable.

        A request of a person `is_active`: it moves the idle limit of the session.
        """
        ...

    async def confirm(self, origin: Origin, token: str, password: str, otp: str | None) -> SignedIn:
        """Prove again who the visitor is; its session gets a new token. Raises Unauthenticated, Unavailable."""
        ...

    async def sign_out(self, origin: Origin, token: str, *, everywhere: bool) -> None:
        """End the session, or all sessions of its actor, at once in every process. Safe to repeat."""
        ...

    def guards(self, permission: str) -> bool:
        """Return whether a permission is about access, so that a change under it needs a recent proof."""
        ...
