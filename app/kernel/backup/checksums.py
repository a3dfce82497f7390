"""Checksums of files as PostgreSQL writes them into a manifest: CRC-32C (RFC 3720, section 12.1) and SHA-2."""

import hashlib
from typing import Any, Protocol

import google_crc32c

_functions: Any = google_crc32c  # it says that it is typed, and is not


class Checksum(Protocol):
    """The checksum of bytes that arrive in pieces."""

    def update(self, chunk: bytes | memoryview, /) -> None:
        """Add a piece."""
        ...

    def hexdigest(self) -> str:
        """Return the checksum of all pieces so far, as in a manifest."""
        ...


def checksum_of(algorithm: str) -> Checksum:
    """Return a new checksum: CRC32C, SHA224, SHA256, SHA384 or SHA512. Raises ValueError for another algorithm."""
    return _Crc32c() if algorithm == "CRC32C" else hashlib.new(algorithm.lower(), usedforsecurity=False)


class _Crc32c:
    def __init__(self) -> None:
        self._value: int = 0

    def update(self, chunk: bytes | memoryview, /) -> None:
        self._value = _functions.extend(self._value, bytes(chunk))

    def hexdigest(self) -> str:
        return self._value.to_bytes(4, "little").hex()  # as the server has it in memory
