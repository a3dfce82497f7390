"""Publish the public keys."""

from dataclasses import dataclass
from typing import Any

from app.kernel.operations import Kind, operation
from app.modules.auth.keyring import Keyring


@dataclass(frozen=True, slots=True)
class KeySet:
    """A JWK Set (RFC 7517, section 5)."""

    keys: list[dict[str, Any]]


@operation("auth.get_jwks", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class GetJwks:
    """Publish the public keys, for those who verify access tokens themselves."""

    keys: Keyring

    async def __call__(self) -> KeySet:
        """Return the key set. Safe to repeat."""
        return KeySet(await self.keys.public())
