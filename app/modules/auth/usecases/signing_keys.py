"""The signing keys: list, rotate, publish."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from app.kernel.audit import Audit
from app.kernel.db import Database, Transaction
from app.kernel.operations import Caller, Kind, operation


class Keys(Protocol):
    """The keyring."""

    async def rotate(self, tx: Transaction, forget_before: datetime) -> tuple[str, list[str]]:
        """Make a new signing key, and forget those whose tokens have expired; return the new id and the forgotten."""
        ...

    async def public(self) -> list[dict[str, object]]:
        """Return the public keys as JWK."""
        ...


@dataclass(frozen=True, slots=True)
class Rotated:
    """The new signing key, and the keys that were forgotten because no token of theirs is valid any more."""

    kid: str
    forgotten: list[str]


@operation("auth.rotate_keys", Kind.MANUAL_COMMAND)
@dataclass(frozen=True, slots=True)
class RotateKeys:
    """Sign with a new key from now on; tokens of the former ones stay valid until they expire."""

    db: Database
    keys: Keys
    audit: Audit
    access_token_ttl_s: float

    async def __call__(self, caller: Caller) -> Rotated:
        """Return the new key. Running processes follow within half a minute. Not safe to repeat: each makes one."""
        overlap = timedelta(seconds=self.access_token_ttl_s + 60)
        async with self.db.begin() as tx:
            kid, forgotten = await self.keys.rotate(tx, datetime.now(UTC) - overlap)
            await self.audit.record(tx, caller, "auth.rotate_keys", target=kid, forgotten=forgotten)
        return Rotated(kid, forgotten)


@dataclass(frozen=True, slots=True)
class KeySet:
    """A JWK Set (RFC 7517, section 5)."""

    keys: list[dict[str, Any]]


@operation("auth.get_jwks", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class GetJwks:
    """Publish the public keys, for those who verify access tokens themselves."""

    keys: Keys

    async def __call__(self) -> KeySet:
        """Return the key set. Safe to repeat."""
        return KeySet(await self.keys.public())
