"""Administration of signing keys."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from app.kernel.actions import Note, Transaction, change, read
from app.kernel.db import now
from app.kernel.paging import Page
from app.modules.auth.keyring import Keyring, ListedKey
from app.modules.auth.settings import AuthSettings


@dataclass(frozen=True, slots=True)
class KeySet:
    """A JWK Set (RFC 7517, section 5)."""

    keys: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Rotated:
    """The new signing key, and the removed keys, whose tokens have all expired."""

    kid: str
    forgotten: list[str]

    def __str__(self) -> str:
        return f"the new key {self.kid} signs; {len(self.forgotten)} old keys were removed"


@dataclass(frozen=True, slots=True)
class KeyAdministration:
    """List and rotate signing keys."""

    keyring: Keyring
    settings: AuthSettings

    @read("auth.get_jwks", GET="/.well-known/jwks.json", public=True, cache_s=300)
    async def jwks(self) -> KeySet:
        """Publish the public keys that verify access tokens. Safe to repeat."""
        return KeySet(await self.keyring.public())

    @read("auth.list_keys", command="auth keys list")
    async def list(self) -> Page[ListedKey]:
        """List the signing keys, newest first. The newest key signs; the others verify tokens until they expire."""
        return Page(await self.keyring.listed())

    @change("auth.rotate_keys", command="auth keys rotate")
    async def rotate(self, tx: Transaction, note: Note) -> Rotated:
        """Create a new signing key. Running processes use it within 30 seconds. Tokens of former keys stay valid.

        Not safe to repeat: each run creates a key.
        """
        overlap = timedelta(seconds=self.settings.access_token_ttl + 60)
        kid, forgotten = await self.keyring.rotate(tx, await now(tx) - overlap)
        note.target, note.details["forgotten"] = kid, forgotten
        return Rotated(kid, forgotten)
