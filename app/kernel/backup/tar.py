"""Reads a tar stream as it passes: the format that PostgreSQL writes (POSIX.1-1988 ustar, sizes also in base 256)."""

from collections.abc import Callable
from typing import NamedTuple

from app.kernel.backup import BackupInvalid

_BLOCK = 512
_FILE, _FOLDER = b"0\0", b"5"


class Entry(NamedTuple):
    """A file or a folder of an archive."""

    name: str
    size_bytes: int
    is_file: bool


Take = Callable[[memoryview], object]
"""Takes the content of a file in pieces, which are valid during the call only."""


class TarReader:
    """Takes an archive in pieces of any size. Calls `opened` for each entry; what that returns takes the content."""

    def __init__(self, name: str, opened: Callable[[Entry], Take | None]) -> None:
        self._name, self._opened = name, opened
        self._header = bytearray()
        self._left = self._padding = 0
        self._take: Take | None = None
        self._zeros = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next piece. Raises BackupInvalid if it is no archive."""
        view, at, end = memoryview(chunk), 0, len(chunk)
        while at < end:
            if self._left:
                length = min(self._left, end - at)
                if self._take:
                    self._take(view[at : at + length])
                self._left -= length
                at += length
            elif self._padding:
                length = min(self._padding, end - at)
                self._padding -= length
                at += length
            else:
                length = min(_BLOCK - len(self._header), end - at)
                self._header += view[at : at + length]
                at += length
                if len(self._header) == _BLOCK:
                    self._begin(bytes(self._header))
                    self._header.clear()

    def end(self) -> None:
        """Raise BackupInvalid unless the archive has ended as it should."""
        if self._zeros < 2 or self._header or self._left:
            raise BackupInvalid(f"{self._name} is not a whole archive: it ends early")

    def _begin(self, header: bytes) -> None:
        if header == bytes(_BLOCK):
            self._zeros += 1
            return
        if self._zeros or not _sums_up(header):
            raise BackupInvalid(f"{self._name} is not an archive of PostgreSQL: a header of it is wrong")
        try:
            size, kind = _number(header[124:136]), header[156:157]
        except ValueError as error:
            raise BackupInvalid(f"{self._name} is not an archive of PostgreSQL: a size in it is wrong") from error
        name = header[:100].partition(b"\0")[0].decode(errors="surrogateescape")
        if prefix := header[345:500].partition(b"\0")[0]:
            name = f"{prefix.decode(errors='surrogateescape')}/{name}"
        if kind not in _FILE + _FOLDER or size < 0:
            raise BackupInvalid(f"{self._name} has something else than files and folders: {name!r}")
        is_file = kind in _FILE
        self._left = size if is_file else 0
        self._padding = -self._left % _BLOCK
        self._take = self._opened(Entry(name.removeprefix("./"), self._left, is_file))


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:])
    return int(field.strip(b" \0") or b"0", 8)


def _sums_up(header: bytes) -> bool:
    try:
        return _number(header[148:156]) == sum(header[:148]) + sum(header[156:]) + 8 * ord(" ")
    except ValueError:
        return False
