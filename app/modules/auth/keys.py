"""The keyring: signing keys, in the database, encrypted under keys derived from the master secret."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import ECKey

from app.kernel.config import Misconfigured
from app.kernel.db import Database, Queries, Transaction
from app.kernel.identifiers import uuid7

_NONCE_BYTES = 12


class SigningKeys(Protocol):
    """Encrypted signing keys, stored."""

    async def all(self, db: Queries) -> list[tuple[str, bytes]]:
        """Return key ids and encrypted private keys, newest first."""
        ...

    async def add_first(self, tx: Transaction, kid: str, private_key: bytes) -> None:
        """Store the first key, unless another process was faster."""
        ...


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of this deployment; the first one signs."""

    signing: Sequence[ECKey] = field(repr=False)
    refresh_mac: bytes = field(repr=False)


def _derive(master_secret: str, purpose: str) -> bytes:
    """Return 32 bytes for one purpose (HKDF, RFC 5869)."""
    return HKDF(SHA256(), 32, None, f"app auth {purpose}".encode()).derive(master_secret.encode())


async def open_keyring(db: Database, stored: SigningKeys, master_secret: str) -> Keyring:
    """Return the keyring, with a first signing key if there was none. Safe to repeat, and in many processes at once.

    Raises Misconfigured when the master secret is not the one the keys were encrypted with.
    """
    cipher = AESGCM(_derive(master_secret, "signing keys"))
    rows = await stored.all(db)
    if not rows:
        private = ec.generate_private_key(ec.SECP256R1())
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        kid, nonce = str(uuid7()), os.urandom(_NONCE_BYTES)
        async with db.begin() as tx:
            await stored.add_first(tx, kid, nonce + cipher.encrypt(nonce, pem, kid.encode()))
        rows = await stored.all(db)
    keys: list[ECKey] = []
    for kid, sealed in rows:
        try:
            pem = cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], kid.encode())
        except InvalidTag:
            raise Misconfigured(
                "AUTH_MASTER_SECRET does not open the signing keys in the database; set the one they were made with"
            ) from None
        keys.append(ECKey.import_key(pem, {"kid": kid, "alg": "ES256", "use": "sig"}))
    return Keyring(keys, _derive(master_secret, "refresh tokens"))
