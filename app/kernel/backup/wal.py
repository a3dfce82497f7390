"""The archive of WAL on the target: what is stored of a cluster, how far, and what is missing."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from loguru import logger

from app.kernel.backup import BackupInvalid, Stored, Target
from app.kernel.backup.catalogue import WAL_SUFFIX, Catalogue, wal_names, wal_prefix
from app.kernel.backup.sealed import Keys
from app.kernel.backup.timelines import (
    HEADER_BYTES,
    Fork,
    Stretch,
    WalFile,
    header_of,
    history_name,
    history_of,
    is_on_way,
    leads_through,
    lsn_text,
    timeline_at,
    wal_file,
    way,
)
from app.kernel.errors import Conflict, NotFound

SEGMENT_BYTES = 16 * 1024 * 1024
_PARTIAL = ".partial"
_CHUNK_BYTES, _PAGE_BYTES = 1024 * 1024, 8192


class StoredWal(NamedTuple):
    """A stored file of WAL, with its object on the target."""

    file: WalFile
    stored: Stored


class Reached(NamedTuple):
    """A position in bytes, on a timeline."""

    timeline: int
    lsn: int


class Gap(NamedTuple):
    """WAL that is missing between two stored files: positions in bytes, and the timeline of its end."""

    timeline: int
    begin: int
    end: int

    def __str__(self) -> str:
        return f"gap: WAL from {lsn_text(self.begin)} to {lsn_text(self.end)} of timeline {self.timeline} is not stored"

    @property
    def until(self) -> Reached:
        """Its end."""
        return Reached(self.timeline, self.end)


class Position(NamedTuple):
    """How far WAL is stored: the timeline, the position in bytes, and when."""

    timeline: int
    lsn: int
    stored_at: datetime


class WalArchive:
    """The stored WAL of one cluster. Files of another cluster are refused.

    All methods raise TargetUnavailable, and BackupInvalid for what is damaged or sealed with another key.
    """

    def __init__(self, target: Target, keys: Keys, cluster: str, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.cluster, self.segment_bytes = cluster, segment_bytes
        self._target, self._keys = target, keys
        self.reached = Reached(0, 0)
        """How far the file goes that was put last."""
        self._partial: tuple[str, int] = ("", 0)  # the name and length of the partial segment stored last

    def put(self, path: Path, *, is_live: bool = False) -> bool:
        """Store a segment, a partial segment or a history durably; return whether it was not stored before.

        A partial segment replaces a shorter one only; a full one supersedes it. The same content again changes nothing,
        and what is stored damaged is replaced.
        The history of a live server, which goes on writing, replaces that of a restored one that has stored nothing.
        Raises Conflict if other content is stored by this name, BackupInvalid if the file is not what its name says.
        """
        file = self._known(path.name)
        if file.number is None:
            forks = history_of(path.read_text(errors="replace"))
            if not forks or forks[-1].timeline >= file.timeline:
                raise BackupInvalid(f"{path.name} is not the history of the timeline {file.timeline}")
            return self._put_history(path, file.timeline, is_live=is_live)
        length = self._length(path, file)
        if not file.is_partial:
            is_new = self._put_whole(path, length)
            self._target.delete(self._names(path.name + _PARTIAL))
        else:
            is_new = self._put_partial(path, length)
        self.reached = Reached(file.timeline, file.start(self.segment_bytes) + length)
        return is_new

    def get(self, name: str, into: Path) -> bool:
        """Write a segment or a history to a file, atomically; return False if it is not stored.

        A segment that is stored partially only is filled up with zeros, at which recovery ends.
        """
        if self._fetch(name, into, 0):
            return True
        file = wal_file(name, self.segment_bytes)
        is_whole = file is not None and file.number is not None and not file.is_partial
        return is_whole and self._fetch(name + _PARTIAL, into, self.segment_bytes)

    def files(self) -> Iterator[StoredWal]:
        """Yield what is stored, by name: histories, and segments in order within each timeline."""
        prefix = wal_prefix(self.cluster)
        for stored in self._target.list(prefix):
            name, _, _ = stored.name.removeprefix(prefix).removesuffix(WAL_SUFFIX).rpartition(".")
            if (file := wal_file(name, self.segment_bytes)) and stored.name in self._names(name):
                yield StoredWal(file, stored)

    def segments(self) -> Iterator[StoredWal]:
        """Yield what is stored, by name, without histories."""
        return (wal for wal in self.files() if wal.file.number is not None)

    def history(self, timeline: int) -> tuple[Fork, ...] | None:
        """Return from which timelines one comes, oldest first; None if its history is not stored."""
        if timeline == 1:
            return ()
        try:
            content = b"".join(self._content(history_name(timeline)))
        except NotFound:
            return None
        return history_of(content.decode(errors="replace"))

    def seal_anew(self) -> None:
        """Seal with the key the histories that the former one sealed: they are kept for longer than any key."""
        for wal in self.files():
            name, former = self._names(wal.file.name)[0], wal.stored.name
            if wal.file.number is None and name != former:
                content = b"".join(self._keys.unpack(former, self._target.get(former)))
                self._target.put(name, self._keys.pack(name, [content], in_threads=False), replace=True)
                self._target.delete([former])

    def stretches(self, timeline: int) -> tuple[Stretch, ...]:
        """Return the way to a timeline; without its history, it is that timeline alone."""
        return way(timeline, self.history(timeline) or ())

    def gaps(
        self,
        begin: int,
        timeline: int,
        *,
        stretches: Sequence[Stretch] = (),
        files: Iterable[StoredWal] | None = None,
    ) -> list[Gap]:
        """Return what is missing from a position of a timeline until the last stored segment, on the way given.

        By default, that is the way to the newest timeline. A position that it does not come through is itself a gap.
        After a partial segment, the gap begins where its content ends.
        """
        size, found = self.segment_bytes, [wal.file for wal in (self.segments() if files is None else files)]
        stretches = stretches or self.stretches(max((file.timeline for file in found), default=timeline))
        on_way = [file for file in found if is_on_way(file, stretches, size)]
        last = max((file.number or 0 for file in on_way), default=-1)
        stored = {file.number for file in on_way if not file.is_partial or file.number == last}
        partial = {file.number: file for file in on_way if file.is_partial}
        gaps: list[Gap] = []
        if not leads_through(stretches, timeline, begin):
            gaps.append(Gap(timeline, begin, begin := max(stretches[-1].begin, begin)))
        for number in range(begin // size, last + 1):
            if number in stored:
                continue
            at = timeline_at(stretches, number, size)
            start, end = max(begin, number * size), (number + 1) * size
            if number in partial:
                with suppress(BackupInvalid):  # as if it were not stored
                    start = max(start, -(-self.end(partial[number]) // 8) * 8)  # records are aligned
            if start >= end:
                continue
            if gaps and gaps[-1].end == start and gaps[-1].timeline == at:
                start = gaps.pop().begin
            gaps.append(Gap(at, start, end))
        return gaps

    def position(self, timeline: int | None = None) -> Position | None:
        """Return how far WAL of a timeline is stored, by default the newest; None without any. Ignores gaps.

        Of a partial segment, the position is at most some bytes too low.
        """
        newest = max(
            (wal for wal in self.segments() if timeline in {None, wal.file.timeline}),
            key=lambda wal: (wal.file.timeline, wal.file.number or 0, not wal.file.is_partial),
            default=None,
        )
        if newest is None:
            return None
        return Position(newest.file.timeline, self.end(newest.file), newest.stored.at)

    def end(self, file: WalFile) -> int:
        """Return the position in bytes at which the content of a stored segment ends. Reads a partial one."""
        length = self.segment_bytes
        if file.is_partial:
            with suppress(NotFound):  # superseded meanwhile
                length = self._size(file.name)
        return file.start(self.segment_bytes) + length

    def _known(self, name: str) -> WalFile:
        if file := wal_file(name, self.segment_bytes):
            return file
        raise BackupInvalid(f"{name} is not the name of a file of WAL")

    def _names(self, name: str) -> tuple[str, ...]:
        return wal_names(self._keys, self.cluster, name)

    def _content(self, name: str) -> Iterator[bytes]:
        """Yield the content of a stored file. Raises NotFound."""
        for stored in self._names(name):
            chunks = self._keys.unpack(stored, self._target.get(stored))
            with suppress(NotFound):
                first = next(chunks, b"")
                break
        else:
            raise NotFound(f"{name} is not stored in {self._target.label}")
        yield first
        yield from chunks

    def _is_listed(self, names: Iterable[str]) -> bool:
        return any(stored.name == name for name in names for stored in self._target.list(name))

    def _length(self, path: Path, file: WalFile) -> int:
        """Return the length of the content of a segment, after checking that it is what its name says."""
        size = path.stat().st_size
        with path.open("rb") as opened:
            header = header_of(opened.read(HEADER_BYTES))
        if header is None:
            if file.is_partial:
                return 0
            raise BackupInvalid(f"{path.name} is not a segment of WAL: it does not begin with its header")
        if header.cluster != self.cluster:
            raise Conflict(f"{path.name} is WAL of the cluster {header.cluster}, not of {self.cluster}")
        same = (self.segment_bytes, file.start(self.segment_bytes))
        if (header.segment_bytes, header.lsn) != same or header.timeline > file.timeline:
            where = f"{lsn_text(header.lsn)} of timeline {header.timeline}"
            raise BackupInvalid(f"{path.name} has other WAL than its name says: that from {where}")
        if not file.is_partial:
            if size != self.segment_bytes:
                raise BackupInvalid(f"{path.name} has {size} bytes, not {self.segment_bytes}")
            return size
        return _used(path, min(size, self.segment_bytes))

    def _packed(self, name: str, path: Path, length: int) -> Iterator[bytes]:
        return self._keys.pack(name, _chunks(path, length), in_threads=False)

    def _put_whole(self, path: Path, length: int) -> bool:
        name, *former = self._names(path.name)
        try:
            if not self._is_listed(former):
                with suppress(Conflict):
                    self._target.put(name, self._packed(name, path, length))
                    return True
            is_same = self._is_stored(path)
        except BackupInvalid:
            self._replace(path, length)
            return True
        if not is_same:
            raise Conflict(f"{path.name} is stored already with other content: another server of this cluster wrote it")
        return False

    def _put_history(self, path: Path, timeline: int, *, is_live: bool) -> bool:
        """Store a history. A standby that takes over does not see which timelines are taken by what is stored."""
        try:
            return self._put_whole(path, path.stat().st_size)
        except Conflict:
            if not is_live or self._is_used(timeline):
                raise
        logger.warning("{} of a restored server, which has stored nothing, is replaced", path.name)
        self._replace(path, path.stat().st_size)
        return True

    def _is_used(self, timeline: int) -> bool:
        """Return whether WAL or a backup of a timeline is stored, or one whose timeline cannot be read."""
        whole, damaged = Catalogue(self._target, self._keys).read()
        return (
            any(wal.file.timeline == timeline for wal in self.segments())
            or any((each.cluster, each.timeline) == (self.cluster, timeline) for each in whole)
            or any(each.cluster == self.cluster for each in damaged)
        )

    def _put_partial(self, path: Path, length: int) -> bool:
        if self._partial[0] != path.name:
            if self._is_listed(self._names(path.name.removesuffix(_PARTIAL))):
                return False
            try:
                self._partial = (path.name, self._size(path.name))
            except (NotFound, BackupInvalid):
                self._partial = (path.name, 0)
        if length <= self._partial[1]:
            return False
        self._replace(path, length)
        self._partial = (path.name, length)
        return True

    def _replace(self, path: Path, length: int) -> None:
        """Store a file in place of what is stored by its name, with whichever key."""
        name, *former = self._names(path.name)
        self._target.put(name, self._packed(name, path, length), replace=True)
        self._target.delete(former)

    def _size(self, name: str) -> int:
        """Return the size of the content of a stored file, which is read. Raises NotFound."""
        return sum(map(len, self._content(name)))

    def _is_stored(self, path: Path) -> bool:
        with path.open("rb") as opened:
            for chunk in self._content(path.name):
                if opened.read(len(chunk)) != chunk:
                    return False
            return not opened.read(1)

    def _fetch(self, name: str, into: Path, size_bytes: int) -> bool:
        handle, temporary = tempfile.mkstemp(dir=into.parent, prefix=f".{into.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in self._content(name):
                    file.write(chunk)
                if size_bytes:
                    file.truncate(size_bytes)
            Path(temporary).replace(into)
        except NotFound:
            return False
        finally:
            Path(temporary).unlink(missing_ok=True)
        return True


def _chunks(path: Path, length: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while length > 0 and (chunk := file.read(min(length, _CHUNK_BYTES))):
            length -= len(chunk)
            yield chunk


def _used(path: Path, size: int) -> int:
    """Return the length of a file without the pages of zeros at its end."""
    with path.open("rb") as file:
        for at in range((size - 1) // _PAGE_BYTES * _PAGE_BYTES, -1, -_PAGE_BYTES):
            file.seek(at)
            if page := file.read(_PAGE_BYTES).rstrip(b"\0"):
                return at + len(page)
    return 0
