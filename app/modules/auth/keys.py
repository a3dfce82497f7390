"""Administration of signing keys."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from app.kernel.actions import Caller, Database, Note, Transaction, change, read
from app.kernel.audit import Audit
from app.kernel.db import now
from app.kernel.errors import Refusal
from app.kernel.paging import Page, PageByName, page_of
from app.kernel.product import NAME
from app.modules.auth.domain.actors import SUPERUSER
from app.modules.auth.keyring import Keyring, ListedKey
from app.modules.auth.master_secret import Sealer
from app.modules.auth.postgres.second_factors import SecondFactors
from app.modules.auth.settings import AuthSettings

_BATCH = 500


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
class Rewrapped:
    """Numbers of secrets re-encrypted under the new master secret."""

    signing_keys: int
    second_factors: int

    def __str__(self) -> str:
        if not self.signing_keys and not self.second_factors:
            return "everything is encrypted under AUTH_MASTER_SECRET already"
        return (
            f"re-encrypted {self.signing_keys} signing keys and {self.second_factors} second factors under"
            " AUTH_MASTER_SECRET; running processes use it within 30 seconds"
        )


@dataclass(frozen=True, slots=True)
class KeyAdministration:
    """List and rotate signing keys, and change the master secret."""

    keyring: Keyring
    factors: SecondFactors
    sealer: Sealer
    audit: Audit
    settings: AuthSettings

    @read("auth.get_jwks", GET="/.well-known/jwks.json", public=True, cache_s=300)
    async def jwks(self) -> KeySet:
        """Publish the public keys that verify access tokens. Safe to repeat."""
        return KeySet(await self.keyring.public())

    @read("auth.list_keys", GET="/auth/v1/keys", permission=SUPERUSER, command="auth keys list")
    async def list(self, wanted: PageByName) -> Page[ListedKey]:
        """List the signing keys, newest first. The newest key signs; the others verify tokens until they expire."""
        found = await self.keyring.listed()
        return page_of(
            found,
            lambda key: f"{key.created_at.isoformat()} {key.kid}",
            wanted.limit,
            wanted.cursor,
            is_descending=True,
        )

    @change(
        "auth.rotate_keys",
        POST="/auth/v1/keys/rotate",
        permission=SUPERUSER,
        command="auth keys rotate",
        notable=True,
    )
    async def rotate(self, tx: Transaction, note: Note) -> Rotated:
        """Create a new signing key. Running processes use it within 30 seconds. Tokens of former keys stay valid.

        Not safe to repeat: each run creates a key.
        """
        overlap = timedelta(seconds=self.settings.access_token_ttl + 60)
        kid, forgotten = await self.keyring.rotate(tx, await now(tx) - overlap)
        note.target, note.details["forgotten"] = kid, forgotten
        return Rotated(kid, forgotten)

    @change("auth.rewrap_keys", command="auth keys rewrap", notable=True)
    async def rewrap(self, db: Database, caller: Caller) -> Rewrapped:
        """Encrypt everything under the new master secret. Safe to repeat, also after an interruption.

        Run it when every process has the new AUTH_MASTER_SECRET, and the former one as AUTH_MASTER_SECRET_PREVIOUS. It
        takes the database, because each batch is a transaction with its audit record.
        """
        async with db.begin() as tx:
            if keys := await self.keyring.rewrap(tx):
                await self.audit.record(tx, caller, "auth.rewrap_keys", signing_keys=keys)
        after, factors, unreadable = UUID(int=0), 0, list[UUID]()
        while True:
            async with db.begin() as tx:
                done = await self.factors.rewrap(tx, self.sealer, after, _BATCH)
                if done.changed:
                    await self.audit.record(tx, caller, "auth.rewrap_keys", second_factors=done.changed)
            factors, unreadable = factors + done.changed, unreadable + done.unreadable
            if done.last is None:
                break
            after = done.last
        if unreadable:
            some = ", ".join(map(str, unreadable[:5]))
            raise Refusal(
                f"no master secret decrypts {len(unreadable)} second factors, of the actors {some}; set"
                " AUTH_MASTER_SECRET_PREVIOUS to their secret, or reset them",
                hint=f"{NAME} auth reset-second-factor --username NAME",
            )
        return Rewrapped(keys, factors)
