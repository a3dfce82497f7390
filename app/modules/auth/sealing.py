"""Secrets at rest: keys derived from the master secret, and encryption under them."""

import os

_NONCE_BYTES = 12


def derive(master_secret: str, purpose: str) -> bytes:
    """Return 32 bytes for one purpose (HKDF, RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, None, f"auth {purpose}".encode()).derive(master_secret.encode())


class Sealer:
    """Encrypts what is stored (AES-256-GCM), bound to the name it is stored under."""

    def __init__(self, master_secret: str, purpose: str) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher = AESGCM(derive(master_secret, purpose))

    def seal(self, content: bytes, name: str) -> bytes:
        """Return nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, content, name.encode())

    def open(self, sealed: bytes, name: str) -> bytes:
        """Return the content. Raises InvalidTag when it was sealed with another secret or under another name."""
        return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name.encode())
