"""What takes, lists, restores and prunes backups: an engine, chosen by `backup.engine`."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from app.kernel.backup import Backup, BackupInvalid
from app.kernel.backup.timelines import lsn_number
from app.kernel.errors import Invalid, NotFound
from app.kernel.product import NAME
from app.kernel.text import exact

if TYPE_CHECKING:
    from app.kernel.backup.watching import BackupRun, StoredWal
    from app.kernel.config import Settings

_CATCH_UP_S, _LOOK_EVERY_S = 0.1, 0.25
LATEST = "latest"
"""In place of an id: the newest backup of the cluster."""
_LIST = f"{NAME} backup list"


class Positioned(Protocol):
    """A backup as far as its position in WAL."""

    @property
    def timeline(self) -> int | None: ...
    @property
    def stop_lsn(self) -> str: ...


_Listed = TypeVar("_Listed", bound=Positioned)

Advance = Callable[[int], None]
"""Takes the bytes done since the last call. Raises Stopped when the run was asked to stop."""


class Stopped(Exception):
    """The run was asked to stop. What it had begun is undone."""

    def __str__(self) -> str:
        return "it was stopped"


@dataclass(frozen=True, slots=True)
class Progress:
    """How an engine reports: the name of a step with its size in bytes, if known; then what is done of it."""

    step: Callable[[str, int | None], Advance]
    is_paced: bool = False

    def paced(self, max_rate: int) -> "Progress":
        """Return one that lets at most `max_rate` bytes per second pass, evenly; 0: no limit."""

        def begin(name: str, size_bytes: int | None) -> Advance:
            advance, due = self.step(name, size_bytes), time.monotonic()

            def step(done: int) -> None:
                nonlocal due
                advance(done)
                due = max(due, time.monotonic() - _CATCH_UP_S) + done / max_rate
                while (wait_s := due - time.monotonic()) > 0:
                    time.sleep(min(wait_s, _LOOK_EVERY_S))
                    advance(0)

            return step

        return Progress(begin, is_paced=True) if max_rate else self


@dataclass(frozen=True, slots=True)
class Restore:
    """What to restore: a backup, by default the newest that fits, and how far to replay WAL after it.

    `to` is the time of the last transaction to restore, `lsn` a position instead; without both, everything stored is
    replayed. `timeline` is that of WAL to follow, by default the newest. `into` is the data folder to create.
    """

    into: Path
    backup: str = ""
    to: datetime | None = None
    lsn: str = ""
    timeline: int | None = None
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class Wal:
    """How far WAL is stored. `gap` says what is missing since the newest backup began; empty if nothing is."""

    timeline: int
    lsn: str
    stored_at: datetime
    gap: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data folder that was fetched and not yet replayed: the backup, and PostgreSQL's programs of its version."""

    backup: Backup
    folder: Path
    programs: Path
    wal: Callable[[], AbstractContextManager[str]]
    """While it is open, recovery can use the restore_command that it yields: exit status 1 for WAL that is not stored,
    over 125 when that could not be found out. Closing it raises why WAL could not be fetched, if that happened."""
    timeline: int | None = None
    """That of the WAL to follow; None for the newest."""
    stored: Wal | None = None
    """How far WAL is stored on the way there; None if only the backup is."""
    store: Callable[[Path], object] = lambda _: None
    """Stores the history of a timeline that the restored server begins, so that its number is not used again."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a pruning deleted, or would delete: backups by id, and the number and size of other objects."""

    backups: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    wal_segments: int = 0
    freed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of a verification: problems in one line each, and the bytes that were read."""

    backup: Backup
    problems: tuple[str, ...]
    read_bytes: int
    wal_segments: int


@dataclass(frozen=True, slots=True)
class Damaged:
    """A record that cannot be trusted, why, and what helps. What it describes is not listed."""

    cluster: str
    backup: str
    problem: str
    hint: str = ""


class Engine(Protocol):
    """Takes and restores backups. All methods block; run them in a thread or in a command."""

    @property
    def name(self) -> str:
        """The value of backup.engine."""
        ...

    @property
    def label(self) -> str:
        """Where backups are stored, for people."""
        ...

    def create(self, conninfo: str, progress: Progress) -> Backup:
        """Take a full backup of the server at `conninfo`. It is listed once it is whole. Run one at a time."""
        ...

    def list(self) -> Sequence[Backup]:
        """Return the backups on the target, oldest first, of all clusters. Needs no database."""
        ...

    def get(self, id: str, cluster: str = "") -> Backup:  # noqa: A002 - as in the command
        """Return a backup by id, by the beginning of one that no other has, or the newest: `latest`.

        With `cluster`, only of that one. Raises NotFound, BackupInvalid if it is damaged, Invalid if several begin so,
        or if there are several clusters and the newest is wanted.
        """
        ...

    def damaged(self) -> Sequence[Damaged]:
        """Return the backups that are known to be damaged without reading them: records, missing parts, sizes."""
        ...

    def used_bytes(self) -> int | None:
        """Return the space that backups and WAL take, of all clusters; None if that is not known."""
        ...

    def wal(self, cluster: str) -> Wal | None:
        """Return how far the WAL of a cluster is stored; None without any."""
        ...

    def verify(self, backup: Backup, progress: Progress) -> Verified:
        """Read everything that the backup needs, also its WAL up to the newest, and check it. Changes nothing."""
        ...

    def prepare(self, restore: Restore, progress: Progress) -> Prepared:
        """Fetch a backup into a new data folder. Raises NotFound, BackupInvalid, Conflict if it is not empty."""
        ...

    def prune(self, progress: Progress, *, is_dry: bool) -> Pruned:
        """Delete what the retention does not keep. Never what a kept backup needs, nor the newest good one.

        Raises Stopped between two backups, and between parts of the WAL: the rest is deleted another time.
        """
        ...


def named(
    whole: Sequence[Backup],
    id: str,  # noqa: A002 - as in the command
    cluster: str,
    label: str,
    damaged: Sequence[Damaged] = (),
) -> Backup:
    """Return one of the backups, oldest first, as `Engine.get` does. `label` says where they are."""
    if id == LATEST:
        return newest(of_one_cluster(whole, cluster, label, damaged))
    fits = [backup for backup in whole if id and backup.id.startswith(id) and cluster in ("", backup.cluster)]
    exact = [backup for backup in fits if backup.id == id]
    unusable = [one for one in damaged if id and one.backup.startswith(id) and cluster in ("", one.cluster)]
    for one in unusable:
        if not exact and (one.backup == id or not fits):
            raise BackupInvalid(one.problem, hint=one.hint)
    match exact or fits:
        case [backup]:
            return backup
        case []:
            raise NotFound(f"there is no backup {id!r} on {label}", hint=_LIST)
        case several:
            raise Invalid(f"{len(several)} backups begin with {id!r}: write more of the id", hint=_LIST)


def newest(backups: Sequence[_Listed]) -> _Listed:
    """Return the newest backup of a cluster: on the timeline of the last one by time, that with the highest position.

    A clock that was ahead does not date a position.
    """
    own = [backup for backup in reversed(backups) if backup.timeline == backups[-1].timeline]
    return max(own, key=lambda backup: lsn_number(backup.stop_lsn) if backup.stop_lsn else 0)


def of_one_cluster(
    backups: Sequence[Backup], cluster: str, label: str, damaged: Sequence[Damaged] = ()
) -> Sequence[Backup]:
    """Return the backups of a cluster, by default of the only one, oldest first.

    Raises NotFound, BackupInvalid if all are damaged, Invalid if there are several clusters.
    """
    newest = {backup.cluster: backup for backup in backups}
    unusable = [one for one in damaged if cluster in ("", one.cluster)]
    if unusable and not (cluster in newest if cluster else newest):
        last = unusable[-1]
        raise BackupInvalid(f"no backup on {label} can be used; of the last one: {last.problem}", hint=last.hint)
    if not newest:
        raise NotFound(f"there is no backup on {label}", hint=f"{NAME} backup create")
    each = ", ".join(f"{one.id} (cluster {one.cluster}, {exact(one.finished_at)})" for one in newest.values())
    if cluster and cluster not in newest:
        raise NotFound(f"there is no backup of the cluster {cluster} on {label}, only of others: {each}", hint=_LIST)
    if not cluster and len(newest) > 1:
        message = f"{label} has backups of {len(newest)} clusters; name a backup, or restore with --cluster: {each}"
        raise Invalid(message, hint=_LIST)
    return [backup for backup in backups if cluster in ("", backup.cluster)]


def engine_of(all_settings: "Settings", data: Path) -> Engine:
    """Return the engine of the settings. It fetches secrets, which may take seconds; it does not connect.

    `data` is the folder of a relative target. Raises Misconfigured without a target or a key, StoresUnavailable.
    """
    from app.kernel.config import BackupSettings, PostgresSettings
    from app.kernel.db.devserver.embedded import embedded_binaries

    settings = all_settings[BackupSettings]
    if settings.engine == "pgbackrest":
        from app.kernel.backup.pgbackrest import PgBackRest

        return PgBackRest(settings, embedded_binaries(), all_settings[PostgresSettings].db)
    if settings.engine == "managed":
        from app.kernel.backup.managed import Managed

        return Managed(settings, tuple(f"{kind.section.upper()}_" for kind in all_settings.sections))
    from app.kernel.backup.builtin import Builtin
    from app.kernel.backup.sealed import Keys
    from app.kernel.backup.targets import target_of

    all_settings.demand(BackupSettings)
    return Builtin(settings, target_of(settings, data), Keys.of(settings), embedded_binaries())


def unstored(
    engine: Engine, ids: Collection[str], newest: "BackupRun | None", wal: "StoredWal | None"
) -> Iterator[tuple[str, str]]:
    """Yield what the database has recorded as stored and is not, each with what to do. `ids` are the backups there."""
    from app.kernel.backup.builtin import Builtin

    if isinstance(engine, Builtin) and wal and not engine.has_wal(wal.cluster, wal.timeline, wal.lsn):
        text = f"WAL is recorded as stored until {wal.lsn}, but not on {engine.label}, or with another backup.key"
        yield text, "restart run-backup-agent with the target and the key of this machine"
    known = newest.backup_id if newest and newest.engine == engine.name else None
    if known and known not in ids:
        yield f"the newest backup, {known}, is not on {engine.label}", f"{NAME} backup create"
