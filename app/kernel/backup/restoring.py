"""Chooses a backup of `builtin`, checks that the wanted moment can be reached from it, and fetches it."""

import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

from app.kernel.backup import Backup, BackupInvalid, Target
from app.kernel.backup.catalogue import Catalogue, base_name
from app.kernel.backup.engine import Prepared, Progress, Restore, Wal, named, of_one_cluster
from app.kernel.backup.fetching import fetching, full_disk
from app.kernel.backup.scratch import control
from app.kernel.backup.sealed import Keys
from app.kernel.backup.tar import Entry, Take, TarReader
from app.kernel.backup.timelines import Stretch, WalFile, begun, is_on_way, leads_through, lsn_number, lsn_text
from app.kernel.backup.wal import StoredWal, WalArchive
from app.kernel.errors import Conflict, NotFound, Unavailable
from app.kernel.product import NAME
from app.kernel.text import exact, plural

_LIST = f"{NAME} backup list"
_SPARE_BYTES = 512 * 2**20
"""What recovery needs besides the data, for WAL."""
_JUST_UNDER_1_S = timedelta(microseconds=999_999)  # the first whole second that can be restored


@dataclass(frozen=True, slots=True)
class Plan:
    """A backup, and the WAL that is stored on the way from it to a timeline. `lsn` and `begin` are in bytes."""

    backup: Backup
    archive: WalArchive
    stretches: tuple[Stretch, ...]
    timeline: int
    begin: int
    """The end of the WAL that the backup itself has."""
    lsn: int
    """How far WAL is stored, and when it was."""
    stored_at: datetime
    segments: int
    """How many segments will be replayed, about; 0 if the backup alone is restored."""
    end: int | None = None
    """Where the WAL ends that is replayed, if not where it is stored."""
    gap: str = ""
    """What is missing right after the backup, and should not be."""

    def __str__(self) -> str:
        first = self.backup.finished_at + _JUST_UNDER_1_S
        return (
            f"from {exact(first)} ({self.backup.stop_lsn}, backup {self.backup.id})"
            f" to {exact(max(first, self.stored_at))} ({lsn_text(self.lsn)}) on timeline {self.timeline}"
        )


def planned(restore: Restore, target: Target, keys: Keys) -> Plan:
    """Return the newest backup from which the wanted moment can be reached, and the way.

    Raises NotFound with the range that can be restored, Invalid, BackupInvalid for missing WAL.
    """
    catalogue = Catalogue(target, keys)
    whole, damaged = catalogue.read()
    if restore.backup:
        backups: Sequence[Backup] = [named(whole, restore.backup, restore.cluster, target.label, damaged)]
    else:
        backups = of_one_cluster(whole, restore.cluster, target.label, damaged)
    archive = WalArchive(target, keys, backups[-1].cluster, backups[-1].wal_segment_bytes)
    files = list(archive.segments())
    known = {wal.file.timeline for wal in files} | {backup.timeline for backup in backups}
    timeline = restore.timeline or max(known)  # not one that only has a history: that restore has written nothing
    history = archive.history(timeline)
    if history is None and timeline not in known:
        stored = ", ".join(map(str, sorted(known)))
        raise NotFound(f"timeline {timeline} is not stored on {target.label}; stored are {stored}", hint=_LIST)
    stretches = archive.stretches(timeline)
    files = [wal for wal in files if is_on_way(wal.file, stretches, archive.segment_bytes)]
    end = cache(archive.end)
    plans = [
        _plan(backup, archive, stretches, timeline, files, restore.to, end)
        for backup in backups
        if leads_through(stretches, backup.timeline, lsn_number(backup.stop_lsn))
    ]
    if not plans:
        ids = ", ".join(f"{backup.id} (timeline {backup.timeline})" for backup in backups[-3:])
        raise NotFound(f"no backup leads to timeline {timeline}; there are {ids}", hint=_LIST)
    fit = [plan for plan in plans if _reaches(plan, restore)]
    if not fit:
        wanted = exact(restore.to) if restore.to else restore.lsn
        whole = f"{str(plans[0]).partition(' to ')[0]} to {str(plans[-1]).partition(' to ')[2]}"
        is_late = bool(restore.to) and restore.to > plans[-1].stored_at
        more = "; what is newer is stored within backup.wal_interval" if is_late else ""
        if count := sum(one.cluster == archive.cluster for one in damaged):
            more += f"; {plural(count, 'backup')} cannot be read"
        raise NotFound(f"{wanted} cannot be restored: {target.label} has everything {whole}{more}", hint=_LIST)
    newest = max(fit, key=lambda plan: lsn_number(plan.backup.stop_lsn))  # all are on one way, whatever clocks said
    others = [each for each in whole if each.cluster == archive.cluster]
    return _up_to_gap(newest, restore, files, begun(others, stretches))


def _plan(
    backup: Backup,
    archive: WalArchive,
    stretches: tuple[Stretch, ...],
    timeline: int,
    files: Sequence[StoredWal],
    to: datetime | None,
    end: Callable[[WalFile], int],
) -> Plan:
    size, stop = backup.wal_segment_bytes, lsn_number(backup.stop_lsn)
    begin = -(-stop // size) * size
    way = [wal for wal in files if wal.file.start(size) + size > stop]
    if not way:
        return Plan(backup, archive, stretches, timeline, begin, stop, backup.finished_at, 0)
    last = max(way, key=lambda wal: (wal.file.number or 0, not wal.file.is_partial))
    lsn = -(-end(last.file) // 8) * 8  # records are aligned
    left = next((s.end for s in stretches if s.timeline == last.file.timeline and s.end is not None), lsn)
    replayed = sum(1 for wal in way if to is None or wal.stored.at <= to) + 1
    return Plan(backup, archive, stretches, timeline, begin, min(lsn, left), last.stored.at, replayed)


def _reaches(plan: Plan, restore: Restore) -> bool:
    if restore.to is not None:
        return plan.backup.finished_at <= restore.to <= plan.stored_at
    return not restore.lsn or lsn_number(plan.backup.stop_lsn) <= lsn_number(restore.lsn) <= plan.lsn


def _up_to_gap(plan: Plan, restore: Restore, files: Sequence[StoredWal], newer: int) -> Plan:
    """Return the plan, ended before WAL that is missing; raise BackupInvalid if the wanted moment is after that.

    A backup that is named, and has no WAL after it, is restored as it was: those that are kept for long have none.
    `newer` is where the newest backup begins.
    """
    gaps = plan.archive.gaps(plan.begin, plan.backup.timeline, stretches=plan.stretches, files=files)
    if not gaps:
        return plan
    end, size, backup = gaps[0].begin, plan.archive.segment_bytes, plan.backup
    before = [wal for wal in files if wal.file.start(size) < end]
    until = max((wal.stored.at for wal in before), default=backup.finished_at)
    if restore.to is not None and restore.to <= until:
        return plan  # unless what is missing is needed to know
    if restore.lsn and lsn_number(restore.lsn) <= end:
        return replace(plan, end=end)
    is_alone = end <= plan.begin
    if is_alone and restore.backup and not restore.to and not restore.lsn:
        return replace(plan, end=end, segments=0, gap=str(gaps[0]) if gaps[0].end > newer else "")
    message = f"{gaps[0]}; what is before can be restored: {NAME} backup restore --to-lsn {lsn_text(end)} --into DIR"
    if is_alone:
        message = f"{gaps[0]}; the backup alone can be restored: {NAME} backup restore {backup.id} --into DIR"
    for former in plan.stretches[-2:-1]:
        fork = former.end or 0
        if fork // size == end // size:  # the segment that both have is read on the newer timeline only
            message += f"; for moments before {lsn_text(fork)}, add --timeline {former.timeline}"
    raise BackupInvalid(message, hint=_LIST)


def prepare(
    restore: Restore, progress: Progress, target: Target, keys: Keys, programs_for: Callable[[int], Path]
) -> Prepared:
    """Fetch a backup into a new data folder. See Engine.prepare."""
    plan = planned(restore, target, keys)
    backup, folder = plan.backup, restore.into
    programs = programs_for(backup.server_version)
    if folder.exists() and any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty: name another folder")
    free = shutil.disk_usage(folder.parent).free
    if free < (wanted := backup.size_bytes + _SPARE_BYTES):
        raise Unavailable(f"{folder.parent} has {free / 1e9:.1f} GB free, and the restore needs {wanted / 1e9:.1f} GB")
    name = base_name(backup.cluster, backup.id)
    advance = progress.step("fetch", backup.size_bytes)
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        with _Unpacking(folder, name) as unpacking:
            for chunk in keys.unpack(name, target.get(name)):
                unpacking.feed(chunk)
                advance(len(chunk))
    except NotFound as error:
        raise BackupInvalid(str(error)) from error
    if control(folder, programs).get("Database system identifier") != backup.cluster:
        raise BackupInvalid(f"backup {backup.id} is not one of the cluster {backup.cluster}")
    if not (folder / "backup_label").exists():
        raise BackupInvalid(f"backup {backup.id} has no backup_label: it is not whole")

    @contextmanager
    def wal() -> Generator[str]:
        advance = progress.step("replay", plan.segments * plan.archive.segment_bytes)
        with fetching(plan.archive, folder, plan.stretches, plan.begin, advance, end=plan.end) as command:
            yield command

    has_wal = plan.segments or plan.gap
    stored = Wal(plan.timeline, lsn_text(plan.lsn), plan.stored_at, plan.gap) if has_wal else None
    return Prepared(backup, folder, programs, wal, plan.timeline, stored, plan.archive.put)


class _Unpacking:
    """Writes the files of an archive below a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._open: int | None = None
        self._reader = TarReader(name, self._opened)

    def __enter__(self) -> "_Unpacking":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._close()
        if kind is None:
            self._reader.end()
        elif full := full_disk(self._folder, error):
            raise full from error

    def feed(self, chunk: bytes) -> None:
        self._reader.feed(chunk)

    def _opened(self, entry: Entry) -> Take | None:
        self._close()
        path = self._folder / entry.name
        if ".." in path.parts or not path.is_relative_to(self._folder):
            raise BackupInvalid(f"{self._name} has a file outside of the data folder: {entry.name!r}")
        try:
            if not entry.is_file:
                path.mkdir(mode=0o700, exist_ok=True)
                return None
            self._open = descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
            message = f"{self._name} is not an archive of PostgreSQL: {entry.name!r} comes twice or before its folder"
            raise BackupInvalid(message) from error

        def write(piece: memoryview) -> None:
            while piece:
                piece = piece[os.write(descriptor, piece) :]

        return write

    def _close(self) -> None:
        if self._open is not None:
            os.close(self._open)
            self._open = None
