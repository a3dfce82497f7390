"""The signing keys, as use cases see them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from app.kernel.db import Transaction


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A signing key, without its secret part."""

    kid: str
    algorithm: str
    created_at: datetime
    signs: bool


class Keys(Protocol):
    """The keyring."""

    async def rotate(self, tx: Transaction, forget_before: datetime) -> tuple[str, list[str]]:
        """Make a new signing key, and forget those whose tokens have expired; return the new id and the forgotten."""
        ...

    async def listed(self) -> list[ListedKey]:
        """Return the keys without their secrets, newest first."""
        ...

    async def public(self) -> list[dict[str, object]]:
        """Return the public keys as JWK (RFC 7517)."""
        ...
