"""Sealed objects: compressed with zstd, then encrypted in chunks with AES-256-GCM. docs/backups.md has the format.

The chunks are a STREAM (Hoang, Reyhanitabar, Rogaway, Vizar: Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance, 2015): each nonce counts, and tells whether it is the last, so that nothing can be cut off, added or
reordered. The key of an object depends on its name, so that objects cannot be swapped.
"""

import hashlib
import hmac
import io
import secrets
from collections.abc import Generator, Iterable, Iterator
from queue import Queue
from threading import Event, Thread
from typing import IO, Any, Final, Self, cast

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.kernel.backup import AnotherKey, BackupInvalid, Part
from app.kernel.config.backup import BackupSettings
from app.kernel.config.settings import Misconfigured
from app.kernel.machine import cores
from app.kernel.product import NAME

CHUNK_BYTES: Final = 1024 * 1024
"""What one chunk holds; only the last may hold less."""
_MAGIC: Final = b"sealed\x00\x01"
_ID_BYTES, _SALT_BYTES, _TAG_BYTES, _MARK_BYTES = 8, 32, 16, 8
HEADER_BYTES: Final = len(_MAGIC) + _ID_BYTES + _SALT_BYTES
_LEVEL: Final = 1
_AHEAD: Final = 8  # chunks between two threads
_STOPS_WITHIN_S: Final = 10.0  # a thread that reads from a process stops once that process has ended


class Keys:
    """The key that seals, and the former one, which still opens.

    `id` names the key without telling it.
    """

    def __init__(self, key: str, *former: str) -> None:
        self._secrets = {_key_id(text): text.encode() for text in reversed((key, *former))}
        self._markers = tuple(_derived(secret, b"", b"name") for secret in reversed(self._secrets.values()))
        self.id = _key_id(key)

    @classmethod
    def of(cls, settings: BackupSettings) -> Self:
        """Return the keys of the settings. Raises Misconfigured without one."""
        key, former = settings.key.get_secret_value(), settings.key_previous.get_secret_value()
        if not key:
            raise Misconfigured(
                "backup.key is not set: backups are always sealed", hint=f"{NAME} config explain backup.key"
            )
        return cls(key, *filter(None, [former]))

    def pack(self, name: str, chunks: Iterable[bytes], *, in_threads: bool = True) -> "Packed":
        """Compress and seal the content of the object `name`. Close the result if it is not read to its end.

        `chunks` are read and compressed in threads of their own, at most a few chunks ahead. Without `in_threads`, they
        are in this one, which takes 20 MB less and leaves the other processors to others.
        """
        return Packed(self, name, chunks, in_threads=in_threads)

    def unpack(self, name: str, chunks: Iterable[bytes]) -> Generator[bytes]:
        """Yield the content of the object `name` in chunks. Only once it has ended is it known to be whole.

        `chunks` are read and decompressed in a thread of their own, at most a few chunks ahead.
        Raises BackupInvalid when the object is damaged, cut off, another object, or sealed with an unknown key.
        """
        return _ahead(_decompressed(name, self._opened(name, chunks)))

    def marks(self, name: str) -> tuple[str, ...]:
        """Return what only those who have a key can add to a name: 16 digits by the key, then by the former one."""
        return tuple(hmac.digest(key, name.encode(), "sha256")[:_MARK_BYTES].hex() for key in self._markers)

    def sign(self, content: bytes) -> str:
        """Return a signature (HMAC-SHA256) that only who has the key can make."""
        return f"{self.id}:{self._signature(self.id, content)}"

    def check(self, name: str, content: bytes, signature: str) -> None:
        """Raise BackupInvalid unless the signature is one of these keys over this content of the object `name`."""
        key_id, _, given = signature.partition(":")
        self._known(name, key_id)
        if not hmac.compare_digest(self._signature(key_id, content).encode(), given.encode()):
            raise BackupInvalid(f"{name} is damaged: its signature does not match its content")

    def sealed(self, name: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the sealed object of chunks that have CHUNK_BYTES, all but the last."""
        salt = secrets.token_bytes(_SALT_BYTES)
        yield _MAGIC + bytes.fromhex(self.id) + salt
        cipher, counter, held = self._cipher(self.id, salt, name), 0, b""
        for number, chunk in enumerate(chunks):
            if number:
                yield cipher.encrypt(_nonce(counter, is_last=False), held, None)
                counter += 1
            held = chunk
        yield cipher.encrypt(_nonce(counter, is_last=True), held, None)

    def _opened(self, name: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
        size, counter, buffer, cipher = CHUNK_BYTES + _TAG_BYTES, 0, bytearray(), None
        for chunk in chunks:
            buffer += chunk
            if cipher is None and len(buffer) >= HEADER_BYTES:
                cipher = self._cipher_of(name, bytes(buffer[:HEADER_BYTES]))
                del buffer[:HEADER_BYTES]
            if cipher is not None and len(buffer) > size:
                start = 0
                with memoryview(buffer) as view:
                    while len(buffer) - start > size:
                        yield _open(name, cipher, counter, view[start : start + size], is_last=False)
                        counter, start = counter + 1, start + size
                del buffer[:start]
        if cipher is None:
            raise BackupInvalid(f"{name} is damaged: it is cut off within its header")
        yield _open(name, cipher, counter, buffer, is_last=True)

    def _cipher_of(self, name: str, header: bytes) -> AESGCM:
        if not header.startswith(_MAGIC):
            raise BackupInvalid(f"{name} is damaged, or no sealed object: its header is not one of this version")
        key_id, salt = header[len(_MAGIC) : -_SALT_BYTES].hex(), header[-_SALT_BYTES:]
        self._known(name, key_id)
        return self._cipher(key_id, salt, name)

    def _cipher(self, key_id: str, salt: bytes, name: str) -> AESGCM:
        return AESGCM(_derived(self._secrets[key_id], salt, b"object " + name.encode()))

    def _signature(self, key_id: str, content: bytes) -> str:
        return hmac.new(_derived(self._secrets[key_id], b"", b"record"), content, hashlib.sha256).hexdigest()

    def _known(self, name: str, key_id: str) -> None:
        if key_id not in self._secrets:
            known = ", ".join(reversed(self._secrets))
            raise AnotherKey(
                f"{name} is sealed with the key {key_id[:16]!r}, or damaged; known here: {known}",
                hint="set that key as backup.key_previous (BACKUP_KEY_PREVIOUS_FILE)",
            )


class Packed(Iterator[bytes]):
    """The bytes of a sealed object. Once they have ended, `part` tells what they were."""

    def __init__(self, keys: Keys, name: str, chunks: Iterable[bytes], *, in_threads: bool) -> None:
        self._name, self._size, self._stored, self._hash = name, 0, 0, hashlib.sha256()
        threads = min(cores(), 4) if cores() > 1 and in_threads else 0  # one thread of zstd costs more than none
        compressed = self._compressed(chunks, threads)
        self._chunks = _ahead(compressed) if in_threads else compressed
        self._sealed = keys.sealed(name, self._chunks)
        self._ended = False

    def __next__(self) -> bytes:
        try:
            chunk = next(self._sealed)
        except StopIteration:
            self._ended = True
            raise
        self._hash.update(chunk)
        self._stored += len(chunk)
        return chunk

    def close(self) -> None:
        """End reading. Safe to repeat."""
        self._chunks.close()

    @property
    def part(self) -> Part:
        """What was stored. Raises RuntimeError before the end."""
        if not self._ended:
            raise RuntimeError(f"{self._name} was not read to its end")
        return Part(self._name, self._hash.hexdigest(), self._stored, self._size)

    def _compressed(self, chunks: Iterable[bytes], threads: int) -> Generator[bytes]:
        chunker: Any = zstandard.ZstdCompressor(level=_LEVEL, threads=threads).chunker(chunk_size=CHUNK_BYTES)
        for chunk in chunks:
            self._size += len(chunk)
            yield from chunker.compress(chunk)
        yield from chunker.finish()


def _key_id(key: str) -> str:
    return _derived(key.encode(), b"", b"id")[:_ID_BYTES].hex()


def _derived(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt or None, purpose).derive(secret)


def _nonce(counter: int, *, is_last: bool) -> bytes:
    return counter.to_bytes(11, "big") + bytes([is_last])


def _open(name: str, cipher: AESGCM, counter: int, chunk: bytearray | memoryview, *, is_last: bool) -> bytes:
    try:
        return cipher.decrypt(_nonce(counter, is_last=is_last), chunk, None)
    except (InvalidTag, ValueError) as error:
        other = ", or another object under this name" if counter == 0 else ", or cut off there" if is_last else ""
        raise BackupInvalid(f"{name} is damaged in its chunk {counter}{other}") from error


def _decompressed(name: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        source = cast("IO[bytes]", _Readable(chunks))
        reader = zstandard.ZstdDecompressor().stream_reader(source, read_size=CHUNK_BYTES)
        while content := reader.read(CHUNK_BYTES):
            yield content
        for _ in chunks:
            raise BackupInvalid(f"{name} is damaged: its content goes on after its end")
    except zstandard.ZstdError as error:
        raise BackupInvalid(f"{name} is damaged: {error}") from error


class _Readable(io.RawIOBase):
    """What the decompressor reads: a chunk at a time."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read(self, size: int = -1, /) -> bytes:  # noqa: ARG002 - a chunk has at most the size that is asked for
        return next(self._chunks, b"")


def _ahead(source: Iterable[bytes]) -> Generator[bytes]:
    """Yield what `source` yields, which runs in a thread of its own, a bounded number of chunks ahead."""
    queue: Queue[bytes | BaseException | None] = Queue(_AHEAD)
    stopping = Event()

    def run() -> None:
        end = None
        try:
            for chunk in source:
                queue.put(chunk)
                if stopping.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            end = error
        finally:
            if isinstance(source, Generator):
                source.close()
        queue.put(end)

    thread = Thread(target=run, name="backup-ahead", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopping.set()
        while not queue.empty():
            queue.get_nowait()
        thread.join(_STOPS_WITHIN_S)
