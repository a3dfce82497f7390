"""Rotate the signing keys."""

from dataclasses import dataclass
from datetime import timedelta

from app.kernel.audit import Audit
from app.kernel.db import Database, now
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.keyring import Keyring


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
    keys: Keyring
    audit: Audit
    access_token_ttl_s: float

    async def __call__(self, caller: Caller) -> Rotated:
        """Return the new key. Running processes follow within half a minute. Not safe to repeat: each makes one."""
        overlap = timedelta(seconds=self.access_token_ttl_s + 60)
        async with self.db.begin() as tx:
            kid, forgotten = await self.keys.rotate(tx, await now(tx) - overlap)
            await self.audit.record(tx, caller, "auth.rotate_keys", target=kid, forgotten=forgotten)
        return Rotated(kid, forgotten)
