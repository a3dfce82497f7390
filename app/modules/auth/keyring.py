"""Signing keys, stored in the database and encrypted with keys derived from the master secret."""

import os
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

from app.kernel.actions.columns import Column, Columns
from app.kernel.concurrency import Shared
from app.kernel.config import Misconfigured
from app.kernel.db import Database, Transaction
from app.kernel.identifiers import uuid7
from app.modules.auth.postgres.signing_keys import SigningKeys

if TYPE_CHECKING:
    from joserfc.jwk import ECKey

ALGORITHM = "ES256"
_NONCE_BYTES = 12
_FRESH_S = 30.0  # all processes use a rotated key within this time
_PROMPT_S = 1.0
_UNKNOWN_S = 1.0  # minimum time between two reads of the database because of unknown key ids


def derive(master_secret: str, purpose: str) -> bytes:
    """Derive a key of 32 bytes for one purpose (HKDF, RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, None, f"auth {purpose}".encode()).derive(master_secret.encode())


class Sealer:
    """Encrypts stored secrets (AES-256-GCM). The name of a secret is authenticated with it."""

    def __init__(self, master_secret: str, purpose: str) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher = AESGCM(derive(master_secret, purpose))

    def seal(self, content: bytes, name: str) -> bytes:
        """Encrypt a secret; return nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, content, name.encode())

    def open(self, sealed: bytes, name: str) -> bytes:
        """Decrypt a secret. Raises InvalidTag for another master secret or another name."""
        return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name.encode())


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


class Keyring:
    """The signing keys of this deployment, reloaded after a rotation. The newest key signs; all keys verify."""

    def __init__(self, db: Database, stored: SigningKeys, master_secret: str) -> None:
        self._db = db
        self._stored = stored
        self._sealer = Sealer(master_secret, "signing keys")
        self._keys: dict[str, ECKey] = {}
        self._listed: list[ListedKey] = []
        self._loaded_at = float("-inf")
        self._ahead_s = 0.0  # time of the database's clock minus `time.monotonic`
        self._reload = Shared(self._load)
        self.refresh_mac = derive(master_secret, "refresh tokens")
        self.marking_key = derive(master_secret, "failed passwords")

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
        kid, sealed = self._made()
        await self._stored.add(tx, kid, sealed)
        return kid, await self._stored.forget(tx, forget_before)

    def _made(self) -> tuple[str, bytes]:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        private = ec.generate_private_key(ec.SECP256R1())
        kid = str(uuid7())
        return kid, self._sealer.seal(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), kid)

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
        from cryptography.exceptions import InvalidTag
        from joserfc.jwk import ECKey

        asked_at = time.monotonic()
        rows = await self._stored.all(self._db)
        if not rows:
            kid, sealed = self._made()
            async with self._db.begin() as tx:
                await self._stored.add_first(tx, kid, sealed)
            asked_at = time.monotonic()
            rows = await self._stored.all(self._db)
        self._measured(rows[0][-1], asked_at, time.monotonic())
        keys: dict[str, ECKey] = {}
        for kid, sealed, *_ in rows:
            if kid in self._keys:
                keys[kid] = self._keys[kid]
                continue
            try:
                pem = self._sealer.open(sealed, kid)
            except InvalidTag:
                raise Misconfigured(
                    "AUTH_MASTER_SECRET does not decrypt the signing keys in the database; set their original secret"
                ) from None
            keys[kid] = ECKey.import_key(pem, {"kid": kid, "alg": ALGORITHM, "use": "sig"})
        self._keys = keys
        self._listed = [ListedKey(kid, ALGORITHM, at, number == 0) for number, (kid, _, at, _) in enumerate(rows)]
        self._loaded_at = time.monotonic()
