"""Keys derived from the master secret, and the encryption of stored secrets under them.

During a rotation there are two master secrets, the new one and the previous one. Both decrypt and verify.
"""

import os
from collections.abc import Sequence

_NONCE_BYTES = 12
NEW = 0
"""Position of the new master secret; the previous one follows."""


def derive(master_secret: str, purpose: str) -> bytes:
    """Derive a key of 32 bytes for one purpose (HKDF, RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, None, f"auth {purpose}".encode()).derive(master_secret.encode())


class CannotDecrypt(Exception):
    """None of the master secrets decrypts a stored secret."""


class Sealer:
    """Encrypts stored secrets (AES-256-GCM). The name of a secret is authenticated with it."""

    def __init__(self, master_secrets: Sequence[str], purpose: str) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._ciphers = [AESGCM(derive(secret, purpose)) for secret in master_secrets]

    def seal(self, content: bytes, name: str, under: int = NEW) -> bytes:
        """Encrypt a secret under one of the master secrets; return nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._ciphers[under].encrypt(nonce, content, name.encode())

    def open(self, sealed: bytes, name: str) -> bytes:
        """Decrypt a secret. Raises CannotDecrypt."""
        return self.opened(sealed, name)[0]

    def opened(self, sealed: bytes, name: str) -> tuple[bytes, int]:
        """Decrypt a secret; return it and the position of its master secret. Raises CannotDecrypt."""
        from cryptography.exceptions import InvalidTag

        for position, cipher in enumerate(self._ciphers):
            try:
                return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name.encode()), position
            except (InvalidTag, ValueError):  # of another secret, or damaged
                continue
        raise CannotDecrypt(name)

    def resealed(self, sealed: bytes, name: str) -> bytes | None:
        """Return a secret encrypted under the new master secret; None if it is already. Raises CannotDecrypt."""
        content, position = self.opened(sealed, name)
        return None if position == NEW else self.seal(content, name)
