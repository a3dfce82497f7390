"""The signing keys, as use cases see them."""

from datetime import datetime
from typing import Protocol

from app.kernel.db import Transaction


class Keys(Protocol):
    """The keyring."""

    async def rotate(self, tx: Transaction, forget_before: datetime) -> tuple[str, list[str]]:
        """Make a new signing key, and forget those whose tokens have expired; return the new id and the forgotten."""
        ...

    async def public(self) -> list[dict[str, object]]:
        """Return the public keys as JWK (RFC 7517)."""
        ...
