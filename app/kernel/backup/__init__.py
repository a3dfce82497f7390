"""Backups: what is recorded of each, and where it is stored. The engines that take and restore them stand beside it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple, Protocol

from app.kernel.errors import Conflict, Invalid, Refusal, Unavailable
from app.kernel.product import NAME

QUEUE: Final = "backup"
"""The queue of backups, drills and prunings. Only processes with a backup agent work on it."""

Kind = Literal["backup", "drill", "prune", "verify"]
"""What a run does."""


class BackupInvalid(Invalid):
    """A backup, or a file of it, is damaged, incomplete, or sealed with another key."""

    code = "BACKUP_INVALID"
    title = "A backup is damaged, incomplete, or sealed with another key"
    hint = f"{NAME} backup verify --all"


class AnotherKey(BackupInvalid):
    """Something is sealed with a key that is not known here."""


class TargetUnavailable(Unavailable):
    """The target of backups does not answer, is full, or refuses."""

    code = "BACKUP_TARGET_UNAVAILABLE"
    title = "The target of backups does not answer, is full, or refuses"
    hint = f"{NAME} doctor --only backup"


class DrillFailed(Refusal):
    """A backup was restored, and is not what it should be."""

    code = "DRILL_FAILED"
    title = "A backup was restored, and is not what it should be"
    hint = f"{NAME} backup drill --keep"


class BackupRunning(Conflict):
    """Another backup, drill or pruning runs already."""

    code = "BACKUP_RUNNING"
    title = "Another backup, drill or pruning runs already"
    hint = f"{NAME} backup status"


class Stored(NamedTuple):
    """An object on the target: name, size in bytes, time of its last change."""

    name: str
    size_bytes: int
    at: datetime


class Target(Protocol):
    """Where backups are stored. Names are relative, with `/`. An object is visible once it is whole, never before.

    All methods raise TargetUnavailable after bounded retries, naming the target and the cause in one line.
    """

    label: str

    def put(self, name: str, content: Iterable[bytes], *, replace: bool = False) -> int:
        """Store an object durably; return its size in bytes. Raises Conflict if it exists, unless it may `replace`.

        If `content` raises or this process dies, no object becomes visible, and an existing one stays as it was.
        """
        ...

    def get(self, name: str) -> Iterator[bytes]:
        """Yield the content in chunks. Raises NotFound, BackupInvalid for what has the name and is no object."""
        ...

    def list(self, prefix: str = "") -> Iterator[Stored]:
        """Yield the whole objects whose name begins with the prefix, by name."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, in any order. Safe to repeat."""
        ...

    def clean(self, older_than_s: float) -> int:
        """Delete what interrupted uploads have left; return the number. Safe to repeat, and beside an upload."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """A stored object of a backup: SHA-256 and size of what is stored, and the size of its content, in bytes."""

    name: str
    sha256: str
    stored_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Count:
    """Rows of a table in `percent` of its blocks (TABLESAMPLE SYSTEM, REPEATABLE); 100 for all."""

    table: str
    rows: int
    percent: float = 100.0
    recent: int = 0
    """How many of them may have been written after the backup began."""
    touched: int = 0
    """How many of them others may have deleted, updated or locked without the snapshot seeing that."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of all tables as one snapshot saw them, just before `lsn`. `snapshot` is the text of pg_snapshot."""

    lsn: str
    snapshot: str
    tables: tuple[Count, ...] = ()


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup in the catalogue. LSNs are PostgreSQL's texts, versions its numbers such as 180004."""

    id: str
    cluster: str
    """System identifier of the database cluster."""
    engine: str
    started_at: datetime
    finished_at: datetime
    timeline: int
    start_lsn: str
    stop_lsn: str
    """The backup is consistent once WAL is replayed to here."""
    server_version: int
    app_version: str
    schema: str
    """Id of the newest applied migration; empty without one."""
    database: str
    size_bytes: int
    stored_bytes: int
    wal_segment_bytes: int = 16 * 1024 * 1024
    key_id: str = ""
    """Names the key that seals it, without telling it."""
    parts: tuple[Part, ...] = ()
    counts: Counts | None = None
    depends_on: tuple[str, ...] = ()
    """Ids of backups that it cannot be restored without; those are kept as long as it is."""
