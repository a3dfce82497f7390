"""What other modules may use of auth: who holds a token."""

from typing import Protocol

from app.kernel.operations import Caller


class Portal(Protocol):
    """Auth, for others."""

    async def authenticate(self, token: str) -> Caller:
        """Return who holds the access token. Raises Unauthenticated, Unavailable."""
        ...
