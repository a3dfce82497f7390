"""Positions in WAL, its files, and timelines, as PostgreSQL names them."""

import re
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from app.kernel.backup import Backup, BackupInvalid

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_FILE = re.compile(
    r"(?P<timeline>[0-9A-F]{8})(?:(?P<high>[0-9A-F]{8})(?P<low>[0-9A-F]{8})(?P<part>\.partial)?|\.history)"
)
_BACKUP_LABEL = re.compile(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup")
_HISTORY_LINE = re.compile(r"\s*(\d+)\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?:\s.*)?")
_FOUR_GIB = 2**32
# XLogLongPageHeaderData: magic, info, timeline, address, length of what continues; then cluster, size of a segment
_HEADER = struct.Struct("=HHIQI4xQI")
_IS_LONG = 2


def lsn_number(text: str) -> int:
    """Return a position such as 16/B374D848 in bytes. Raises ValueError."""
    if not (found := _LSN.fullmatch(text.strip())):
        raise ValueError(f"{text!r} is no position in WAL, such as 16/B374D848")
    return int(found[1], 16) * _FOUR_GIB + int(found[2], 16)


def lsn_text(number: int) -> str:
    """Return a position as PostgreSQL writes it."""
    return f"{number // _FOUR_GIB:X}/{number % _FOUR_GIB:X}"


class WalFile(NamedTuple):
    """A file of WAL by its name: a segment, a partial segment, or the history of a timeline."""

    name: str
    timeline: int
    number: int | None
    """Number of the segment; None for a history."""
    is_partial: bool = False

    def start(self, segment_bytes: int) -> int:
        """Return the position at which the segment begins, in bytes."""
        return (self.number or 0) * segment_bytes


def wal_file(name: str, segment_bytes: int) -> WalFile | None:
    """Return what a name tells; None if it is not that of a file of WAL."""
    if not (found := _FILE.fullmatch(name)):
        return None
    timeline = int(found["timeline"], 16)
    if found["high"] is None:
        return WalFile(name, timeline, None)
    high, low, of_each = int(found["high"], 16), int(found["low"], 16), _FOUR_GIB // segment_bytes
    if low >= of_each:
        return None
    number = high * of_each + low
    return WalFile(name, timeline, number, bool(found["part"]))


def is_backup_label(name: str) -> bool:
    """Return whether a name is that of a label of a base backup, which archive_command is also called for."""
    return bool(_BACKUP_LABEL.fullmatch(name))


def segment_name(timeline: int, lsn: int, segment_bytes: int) -> str:
    """Return the name of the segment that holds a position."""
    high, low = divmod(lsn // segment_bytes, _FOUR_GIB // segment_bytes)
    return f"{timeline:08X}{high:08X}{low:08X}"


def history_name(timeline: int) -> str:
    """Return the name of the file that tells from which timelines this one comes."""
    return f"{timeline:08X}.history"


class Fork(NamedTuple):
    """Where the next timeline left a timeline: position in bytes."""

    timeline: int
    lsn: int


def history_of(text: str) -> tuple[Fork, ...]:
    """Return the content of a history file, oldest timeline first. Raises BackupInvalid."""
    forks: list[Fork] = []
    for line in text.splitlines():
        if not (words := line.partition("#")[0].strip()):
            continue
        if not (found := _HISTORY_LINE.fullmatch(words)):
            raise BackupInvalid(f"a history of timelines has a line {line[:100]!r}")
        fork = Fork(int(found[1]), lsn_number(found[2]))
        if forks and (fork.timeline <= forks[-1].timeline or fork.lsn < forks[-1].lsn):
            raise BackupInvalid("a history of timelines is not in order")
        forks.append(fork)
    return tuple(forks)


class Stretch(NamedTuple):
    """A part of the way through timelines: from `begin` until `end`, None if it goes on. Positions in bytes."""

    timeline: int
    begin: int
    end: int | None


def way(timeline: int, forks: Iterable[Fork]) -> tuple[Stretch, ...]:
    """Return the way to a timeline through those of its history."""
    found: list[Stretch] = []
    begin = 0
    for fork in forks:
        found.append(Stretch(fork.timeline, begin, fork.lsn))
        begin = fork.lsn
    return (*found, Stretch(timeline, begin, None))


def timeline_at(stretches: Sequence[Stretch], segment: int, segment_bytes: int) -> int:
    """Return the timeline whose file recovery reads for the segment of a number: the newest that has begun in it."""
    return next(s.timeline for s in reversed(stretches) if s.begin // segment_bytes <= segment)


def leads_through(stretches: Iterable[Stretch], timeline: int, lsn: int) -> bool:
    """Return whether a way comes through a position of a timeline."""
    return any(s.timeline == timeline and (s.end is None or lsn <= s.end) for s in stretches)


def begun(backups: Iterable[Backup], stretches: Sequence[Stretch]) -> int:
    """Return where the newest backup on the way begins: a gap that ends before it needs no more attention."""
    on_way = (each for each in backups if leads_through(stretches, each.timeline, lsn_number(each.stop_lsn)))
    return max((lsn_number(each.start_lsn) for each in on_way), default=0)


def is_on_way(file: WalFile, stretches: Sequence[Stretch], segment_bytes: int) -> bool:
    """Return whether recovery on this way reads a segment."""
    return file.number is not None and file.timeline == timeline_at(stretches, file.number, segment_bytes)


class Header(NamedTuple):
    """What the first page of a segment says: its timeline may be an older one than that of the file's name."""

    timeline: int
    lsn: int
    cluster: str
    segment_bytes: int


HEADER_BYTES = _HEADER.size


def header_of(page: bytes) -> Header | None:
    """Return the header of a segment, on the machine that wrote it or one alike; None if it is empty or none."""
    if len(page) < _HEADER.size:
        return None
    _, info, timeline, lsn, _, cluster, segment_bytes = _HEADER.unpack_from(page)
    if not info & _IS_LONG or segment_bytes.bit_count() != 1 or not 2**20 <= segment_bytes <= 2**30:
        return None
    return Header(timeline, lsn, str(cluster), segment_bytes)
