"""Reads a backup and its WAL as a restore would, and checks everything on the way."""

import hashlib
import hmac
import json
from collections.abc import Callable, Collection, Iterator
from functools import cache
from typing import Any, Final

from app.kernel.backup import Backup, BackupInvalid, Part, Target
from app.kernel.backup.checksums import checksum_of
from app.kernel.backup.engine import Advance, Progress, Verified
from app.kernel.backup.sealed import Keys
from app.kernel.backup.taking import CHECKSUMS, MANIFEST
from app.kernel.backup.tar import Entry, Take, TarReader
from app.kernel.backup.timelines import (
    HEADER_BYTES,
    begun,
    header_of,
    is_on_way,
    lsn_number,
    segment_name,
)
from app.kernel.backup.wal import StoredWal, WalArchive
from app.kernel.errors import NotFound

_WAL: Final = "pg_wal/"
_UNLISTED: Final = (MANIFEST, "postgresql.auto.conf", "recovery.signal", "standby.signal")
_MOST_PROBLEMS: Final = 50
_CHECKSUM_LINE: Final = b'"Manifest-Checksum"'


class Verification:
    """Verifies backups of a target. WAL that several of them need is read once.

    `needing` returns the backups of a cluster whose WAL is kept; without it, that of all is.
    """

    def __init__(self, target: Target, keys: Keys, needing: Callable[[str], Collection[Backup]] | None = None) -> None:
        self._target, self._keys, self._needing = target, keys, needing and cache(needing)
        self._read: dict[str, str] = {}
        """The problems of WAL that was read, by the name of its object."""

    def verify(self, backup: Backup, progress: Progress) -> Verified:
        """Read everything that the backup needs, also its WAL up to the newest, unless the retention keeps it without.

        A gap is a problem until a newer backup on the way begins after it: then nothing more can be done about it.
        Raises TargetUnavailable, Stopped.
        """
        advance = progress.step(backup.id, backup.stored_bytes)
        problems: list[str] = []
        for part in backup.parts:
            problems += self._part(part, backup, advance)
        has_wal = self._needing is None or backup in self._window(backup.cluster)
        size, segments, found = self._wal(backup, progress) if has_wal else (0, 0, [])
        problems += found
        if len(problems) > _MOST_PROBLEMS:
            problems[_MOST_PROBLEMS:] = [f"and {len(problems) - _MOST_PROBLEMS} more"]
        return Verified(backup, tuple(problems), backup.stored_bytes + size, segments)

    def _window(self, cluster: str) -> Collection[Backup]:
        return self._needing(cluster) if self._needing else ()

    def _part(self, part: Part, backup: Backup, advance: Advance) -> list[str]:
        stored, size, files = _Counted(self._target.get(part.name), advance), 0, _Files(part.name, backup)
        try:
            for chunk in self._keys.unpack(part.name, stored):
                size += len(chunk)
                files.reader.feed(chunk)
            files.reader.end()
        except (BackupInvalid, NotFound) as error:
            return [str(error)]
        if stored.hash.hexdigest() != part.sha256 or size != part.size_bytes:
            return [f"{part.name} is not what was stored: its SHA-256 differs from the record's"]
        return [f"{part.name}: {problem}" for problem in files.problems()]

    def _wal(self, backup: Backup, progress: Progress) -> tuple[int, int, list[str]]:
        """Return the bytes that were read, the number of segments, and problems."""
        archive = WalArchive(self._target, self._keys, backup.cluster, backup.wal_segment_bytes)
        files, begin = list(archive.segments()), lsn_number(backup.stop_lsn)
        try:
            newest = max([backup.timeline, *(wal.file.timeline for wal in files)])
            stretches = archive.stretches(newest)
            newer = begun(self._window(backup.cluster), stretches)
            gaps = archive.gaps(begin, backup.timeline, stretches=stretches, files=files)
        except BackupInvalid as error:
            return 0, 0, [str(error)]
        size = archive.segment_bytes
        first = begin // size * size
        needed = [wal for wal in files if wal.file.start(size) >= first and is_on_way(wal.file, stretches, size)]
        advance = progress.step("WAL", sum(wal.stored.size_bytes for wal in needed))
        found = [problem for wal in needed if (problem := self._segment(wal, archive, advance))]
        missing = [str(gap) for gap in gaps if gap.end > newer]
        return sum(wal.stored.size_bytes for wal in needed), len(needed), [*missing, *found]

    def _segment(self, wal: StoredWal, archive: WalArchive, advance: Advance) -> str:
        name = wal.stored.name
        if wal.file.is_partial or name not in self._read:
            self._read[name] = self._segment_problem(wal, archive, advance)
        return self._read[name]

    def _segment_problem(self, wal: StoredWal, archive: WalArchive, advance: Advance) -> str:
        file, size, page = wal.file, 0, b""
        try:
            for chunk in self._keys.unpack(wal.stored.name, _Counted(self._target.get(wal.stored.name), advance)):
                page = page or chunk[:HEADER_BYTES]
                size += len(chunk)
        except NotFound:  # a partial segment that was superseded meanwhile
            return "" if file.is_partial else f"{wal.stored.name} vanished"
        except BackupInvalid as error:
            return str(error)
        if file.is_partial and not size:
            return ""
        header = header_of(page)
        if header is None or header.cluster != archive.cluster or header.lsn != file.start(archive.segment_bytes):
            return f"{wal.stored.name} holds other WAL than its name says"
        if not file.is_partial and size != archive.segment_bytes:
            return f"{wal.stored.name} holds {size} bytes, not {archive.segment_bytes}"
        return ""


class _Counted(Iterator[bytes]):
    """Chunks as they are stored, with their hash."""

    def __init__(self, chunks: Iterator[bytes], advance: Advance) -> None:
        self._chunks, self._advance, self.hash = chunks, advance, hashlib.sha256()

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self.hash.update(chunk)
        self._advance(len(chunk))
        return chunk


class _Files:
    """The files of an archive, compared with the manifest that is its last one."""

    def __init__(self, name: str, backup: Backup) -> None:
        self.reader = TarReader(name, self._opened)
        self._backup = backup
        self._found: dict[str, tuple[int, str]] = {}
        self._manifest = bytearray()
        self._open: tuple[Entry, Any] | None = None

    def problems(self) -> Iterator[str]:
        """Yield what differs from the manifest. Call it after the end."""
        self._closed()
        manifest = bytes(self._manifest)
        try:
            content: Any = json.loads(manifest)
            expected = hashlib.sha256(manifest[: manifest.rindex(_CHECKSUM_LINE)]).hexdigest()
            listed = {_path(file): file for file in content["Files"]}
            if not hmac.compare_digest(expected, str(content["Manifest-Checksum"])):
                yield f"{MANIFEST} is damaged: its own checksum differs"
            yield from self._compared(listed)
            for span in content["WAL-Ranges"]:
                yield from self._missing_wal(span)
        except (ValueError, LookupError, TypeError, AttributeError):
            yield f"{MANIFEST} is missing or damaged"

    def _compared(self, listed: dict[str, Any]) -> Iterator[str]:
        for path, file in listed.items():
            found = self._found.get(path)
            if found is None:
                yield f"{path} is missing"
            elif found[0] != file["Size"]:
                yield f"{path} has {found[0]} bytes, not {file['Size']}"
            elif file["Checksum-Algorithm"] != CHECKSUMS or found[1] != file["Checksum"]:
                yield f"{path} has another checksum than in the manifest"
        for path in sorted(self._found.keys() - listed.keys()):
            if path not in _UNLISTED and not path.startswith(_WAL):
                yield f"{path} is not in the manifest"

    def _missing_wal(self, span: Any) -> Iterator[str]:
        size = self._backup.wal_segment_bytes
        begin, end = lsn_number(span["Start-LSN"]), lsn_number(span["End-LSN"])
        for lsn in range(begin // size * size, end, size):
            name = segment_name(span["Timeline"], lsn, size)
            if self._found.get(f"{_WAL}{name}", (0, ""))[0] != size:
                yield f"{_WAL}{name} is missing or not whole: the backup cannot be made consistent"

    def _opened(self, entry: Entry) -> Take | None:
        self._closed()
        if not entry.is_file:
            return None
        if entry.name == MANIFEST:
            return self._manifest.extend
        digest = checksum_of(CHECKSUMS)
        self._open = entry, digest
        return digest.update

    def _closed(self) -> None:
        if self._open:
            entry, digest = self._open
            self._found[entry.name] = entry.size_bytes, digest.hexdigest()
            self._open = None


def _path(file: Any) -> str:
    if "Encoded-Path" in file:
        return bytes.fromhex(file["Encoded-Path"]).decode(errors="surrogateescape")
    return str(file["Path"])
