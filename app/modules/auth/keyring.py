"""Signing keys, stored in the database and encrypted under the master secret."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from loguru import logger

from app.kernel.actions.columns import Column, Columns
from app.kernel.concurrency import Shared
from app.kernel.config import Misconfigured
from app.kernel.db import Database, Transaction
from app.kernel.identifiers import uuid7
from app.kernel.product import NAME
from app.modules.auth.master_secret import NEW, CannotDecrypt, Sealer, derive
from app.modules.auth.postgres.signing_keys import SigningKeys

if TYPE_CHECKING:
    from joserfc.jwk import ECKey

ALGORITHM = "ES256"
_FRESH_S = 30.0  # all processes use a rotated key within this time
_PROMPT_S = 1.0
_UNKNOWN_S = 1.0  # minimum time between two reads of the database because of unknown key ids


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A signing key, without its secret part."""

    kid: str
    algorithm: str
    created_at: datetime
    signs: bool

    columns: ClassVar[Columns] = (
        Column("key", "kid"),
        Column("algorithm"),
        Column("created at"),
        Column("signs", lambda key: "yes" if key.signs else ""),
    )


class _Opened(NamedTuple):
    sealed: bytes
    key: "ECKey"
    position: int
    """Of its master secret."""


class Keyring:
    """The signing keys of this deployment, reloaded after a rotation. The newest key signs; all keys verify.

    During a rotation of the master secret, the one that encrypts the newest key is current in all processes: it
    encrypts and signs, so that processes without the new one still understand everything. `rewrap` changes it.
    """

    def __init__(self, db: Database, stored: SigningKeys, master_secrets: Sequence[str]) -> None:
        self._db = db
        self._stored = stored
        self._sealer = Sealer(master_secrets, "signing keys")
        self._opened: dict[str, _Opened] = {}
        self._keys: dict[str, ECKey] = {}
        self._listed: list[ListedKey] = []
        self._loaded_at = float("-inf")
        self._ahead_s = 0.0  # time of the database's clock minus `time.monotonic`
        self._reload = Shared(self._load)
        self._current = NEW
        self._names = "AUTH_MASTER_SECRET does not decrypt"
        if len(master_secrets) > 1:
            self._names = "neither AUTH_MASTER_SECRET nor AUTH_MASTER_SECRET_PREVIOUS decrypts"
        self.refresh_macs = [derive(secret, "refresh tokens") for secret in master_secrets]
        self.second_step_macs = [derive(secret, "second steps") for secret in master_secrets]
        self._marking_keys = [derive(secret, "failed passwords") for secret in master_secrets]

    @property
    def refresh_mac(self) -> bytes:
        """The key of new refresh tokens. All `refresh_macs` verify."""
        return self.refresh_macs[self._current]

    @property
    def second_step_mac(self) -> bytes:
        """The key that states that a password was right. All `second_step_macs` verify."""
        return self.second_step_macs[self._current]

    @property
    def marking_key(self) -> bytes:
        """The key of the marks of failed passwords."""
        return self._marking_keys[self._current]

    async def current(self, tx: Transaction) -> int:
        """Return the position of the master secret to encrypt under. `rewrap` waits for the end of the transaction."""
        [(kid, sealed)] = await self._stored.newest(tx)
        return self._sealer.opened(sealed, kid)[1]

    async def rewrap(self, tx: Transaction) -> int:
        """Encrypt the keys under the new master secret; return how many were not. Safe to repeat."""
        await self._stored.lock(tx)
        found = [(kid, self._sealer.resealed(sealed, kid)) for kid, sealed, *_ in await self._stored.all(tx)]
        changed = [(kid, resealed) for kid, resealed in found if resealed is not None]
        for kid, resealed in changed:
            await self._stored.replace(tx, kid, resealed)
        return len(changed)

    async def open(self) -> None:
        """Load the keys; create the first one if there is none. Safe to repeat, also in concurrent processes.

        Raises Misconfigured if the keys were encrypted with another master secret.
        """
        await self._load()

    async def signing(self) -> "ECKey":
        """Return the key that signs."""
        await self._fresh(_FRESH_S)
        return next(iter(self._keys.values()))

    async def find(self, kid: str) -> "ECKey | None":
        """Return the key with an id; None for an unknown id."""
        await self._fresh(_FRESH_S)
        if kid not in self._keys:
            await self._fresh(_UNKNOWN_S)
        return self._keys.get(kid)

    async def public(self) -> list[dict[str, object]]:
        """Return the public keys as JWK (RFC 7517)."""
        await self._fresh(_FRESH_S)
        return [{**key.as_dict(private=False)} for key in self._keys.values()]

    async def listed(self) -> list[ListedKey]:
        """Return the keys without their private parts, newest first."""
        await self._load()
        return self._listed

    async def rotate(self, tx: Transaction, forget_before: datetime) -> tuple[str, list[str]]:
        """Add a signing key and remove keys replaced before a time. Returns the new id and the removed ids."""
        await self._stored.lock(tx)
        kid, sealed = self._made(await self.current(tx))
        await self._stored.add(tx, kid, sealed)
        return kid, await self._stored.forget(tx, forget_before)

    def _made(self, under: int) -> tuple[str, bytes]:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        private = ec.generate_private_key(ec.SECP256R1())
        kid = str(uuid7())
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return kid, self._sealer.seal(pem, kid, under)

    def now(self) -> float:
        """Return the time of the database's clock, which sets the times in tokens."""
        return time.monotonic() + self._ahead_s

    def _measured(self, at: datetime, asked_at: float, answered_at: float) -> None:
        # a slow answer measures the clock imprecisely
        if answered_at - asked_at < _PROMPT_S or self._loaded_at == float("-inf"):
            self._ahead_s = at.timestamp() - (asked_at + answered_at) / 2

    async def _fresh(self, seconds: float) -> None:
        if time.monotonic() - self._loaded_at >= seconds:
            await self._reload()

    async def _load(self) -> None:
        asked_at = time.monotonic()
        rows = await self._stored.all(self._db)
        if not rows:
            kid, sealed = self._made(NEW)
            async with self._db.begin() as tx:
                await self._stored.add_first(tx, kid, sealed)
            asked_at = time.monotonic()
            rows = await self._stored.all(self._db)
        self._measured(rows[0][-1], asked_at, time.monotonic())
        opened = {kid: self._open(kid, sealed) for kid, sealed, *_ in rows}
        usable = {kid: each for kid, each in opened.items() if each is not None}
        if not usable or (len(usable) < len(opened) and not self._keys):
            raise Misconfigured(
                f"{self._names} the signing keys in the database; set their original secret",
                hint=f"{NAME} doctor --only signing-keys",
            )
        self._opened, self._keys = usable, {kid: each.key for kid, each in usable.items()}
        self._current = next(iter(usable.values())).position
        self._listed = [ListedKey(kid, ALGORITHM, at, number == 0) for number, (kid, _, at, _) in enumerate(rows)]
        self._loaded_at = time.monotonic()

    def _open(self, kid: str, sealed: bytes) -> _Opened | None:
        """Return a key; None for one that cannot be decrypted, unless it is known from before."""
        from joserfc.jwk import ECKey

        known = self._opened.get(kid)
        if known is not None and known.sealed == sealed:
            return known
        try:
            pem, position = self._sealer.opened(sealed, kid)
        except CannotDecrypt:
            if self._keys:
                logger.error(
                    "AUTH_MASTER_SECRET was changed elsewhere, and does not decrypt the signing key {}: restart this"
                    " process with the new secret",
                    kid,
                )
            return known and known._replace(sealed=sealed)
        key = known.key if known else ECKey.import_key(pem, {"kid": kid, "alg": ALGORITHM, "use": "sig"})
        return _Opened(sealed, key, position)
