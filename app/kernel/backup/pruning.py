"""Pruning: deletes from a target what the retention does not keep."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from loguru import logger

from app.kernel.backup import Backup, BackupInvalid, Stored, Target
from app.kernel.backup.catalogue import BACKUPS, PROBES, Catalogue, is_record, record_name
from app.kernel.backup.engine import Advance, Damaged, Pruned
from app.kernel.backup.retention import Line, Policy, Retained, retained, trusted_now
from app.kernel.backup.sealed import Keys
from app.kernel.backup.wal import StoredWal, WalArchive
from app.kernel.errors import NotFound
from app.kernel.text import exact

_AT_ONCE = 1000
_ABANDONED = timedelta(days=1)
"""What is not whole after this time is left of a process that ended."""


@dataclass(frozen=True, slots=True)
class Doomed:
    """What is not kept of a cluster: backups, objects of backups that never became whole, and WAL."""

    backups: tuple[Backup, ...] = ()
    kept: tuple[Backup, ...] = ()
    remains: tuple[Stored, ...] = ()
    wal: tuple[StoredWal, ...] = ()


def prune(
    target: Target,
    keys: Keys,
    policy: Policy,
    *,
    is_dry: bool,
    now: datetime | None = None,
    advance: Advance = lambda _: None,
) -> Pruned:
    """Delete what the policy does not keep; with `is_dry` only say what. Safe to repeat, and to do twice at once.

    A backup whose record cannot be read is kept, and so is the WAL since the window began. Nothing is deleted of a
    cluster with a history of timelines that cannot be read: it may need anything. `advance` is called before each
    backup and each part of the WAL, and may raise.
    """
    now = now or datetime.now(UTC)
    catalogue = Catalogue(target, keys)
    objects = list(target.list(BACKUPS))  # before the records: what is listed meanwhile is no remains
    backups, damaged = catalogue.read()
    clusters = {backup.cluster for backup in backups}
    doomed = [_doomed(target, keys, policy, cluster, backups, damaged, objects, now) for cluster in sorted(clusters)]
    for cluster, problem in {one.cluster: one.problem for one in damaged if one.cluster not in clusters}.items():
        logger.warning("of the cluster {}, nothing is deleted: {}", cluster, problem)
    for one in doomed if not is_dry else ():
        for backup in one.backups:
            advance(0)
            logger.info("deletes the backup {} of the cluster {}", backup.id, backup.cluster)
            catalogue.remove(backup)
        # the oldest first: what is left of an interrupted pruning has no hole
        names = [*(stored.name for stored in one.remains), *(wal.stored.name for wal in one.wal)]
        for begin in range(0, len(names), _AT_ONCE):
            advance(0)
            target.delete(names[begin : begin + _AT_ONCE])
    if not is_dry:
        target.clean(_ABANDONED.total_seconds())
        target.delete([stored.name for stored in target.list(PROBES) if stored.at < now - _ABANDONED])
        for cluster in clusters:
            with suppress(BackupInvalid, NotFound):  # reported above; another pruning did it
                WalArchive(target, keys, cluster).seal_anew()
    gone = {_folder(record_name(backup.cluster, backup.id)) for one in doomed for backup in one.backups}
    return Pruned(
        backups=tuple(backup.id for one in doomed for backup in one.backups),
        kept=tuple(backup.id for one in doomed for backup in one.kept),
        wal_segments=sum(len(one.wal) for one in doomed),
        freed_bytes=sum(stored.size_bytes for stored in objects if _folder(stored.name) in gone)
        + sum(stored.size_bytes for one in doomed for stored in one.remains)
        + sum(wal.stored.size_bytes for one in doomed for wal in one.wal),
    )


def needing_wal(catalogue: Catalogue, policy: Policy, cluster: str, now: datetime | None = None) -> tuple[Backup, ...]:
    """Return the backups of a cluster whose WAL is kept, oldest first: from each of them on there must be no gap."""
    backups = catalogue.backups()
    own = [backup for backup in backups if backup.cluster == cluster]
    end = trusted_now(backups, now or datetime.now(UTC))
    if not own or end is None:
        return tuple(own)
    archive = WalArchive(catalogue.target, catalogue.keys, cluster, own[-1].wal_segment_bytes)
    try:
        lines = _lines(archive, archive.files(), own)
    except BackupInvalid:
        return tuple(own)
    return retained(own, lines, policy, end).window


def _doomed(
    target: Target,
    keys: Keys,
    policy: Policy,
    cluster: str,
    all_backups: Sequence[Backup],
    damaged: Sequence[Damaged],
    objects: Sequence[Stored],
    now: datetime,
) -> Doomed:
    backups = tuple(backup for backup in all_backups if backup.cluster == cluster)
    end = trusted_now(all_backups, now)
    remains = _remains(cluster, backups, objects, now)
    if end is None:
        return Doomed(kept=backups, remains=remains)
    archive = WalArchive(target, keys, cluster, backups[-1].wal_segment_bytes)
    files = list(archive.files())
    try:
        lines = _lines(archive, files, backups)
    except BackupInvalid as error:
        logger.warning("nothing of the cluster {} is pruned: {}", cluster, error)
        return Doomed(kept=backups)
    kept = retained(backups, lines, policy, end)
    wal = _not_needed(files, kept, archive.segment_bytes)
    if unreadable := [one.problem for one in damaged if one.cluster == cluster]:
        begin = end - policy.keep - _ABANDONED
        wal = tuple(one for one in wal if one.stored.at < begin)
        logger.warning("of the cluster {}, all WAL since {} is kept: {}", cluster, exact(begin), unreadable[0])
    ids = {backup.id for backup in (*kept.window, *kept.longer)}
    return Doomed(
        backups=tuple(backup for backup in backups if backup.id not in ids),
        kept=tuple(backup for backup in backups if backup.id in ids),
        remains=remains,
        wal=wal,
    )


def _not_needed(files: Sequence[StoredWal], kept: Retained, segment_bytes: int) -> tuple[StoredWal, ...]:
    """Return the segments that are not kept. Histories are: they also tell which timelines are taken."""
    firsts = {
        timeline: kept.first_segment(timeline, segment_bytes) for timeline in {wal.file.timeline for wal in files}
    }

    def is_needed(wal: StoredWal) -> bool:
        first = firsts[wal.file.timeline]
        return wal.file.number is None or (first is not None and wal.file.number >= first)

    found = [wal for wal in files if not is_needed(wal)]
    return tuple(sorted(found, key=lambda wal: (wal.file.number or 0, wal.file.timeline)))


def _lines(archive: WalArchive, files: Iterable[StoredWal], backups: Sequence[Backup]) -> dict[int, Line]:
    """Return the timelines of a cluster. Raises BackupInvalid if it cannot be told from which one comes."""
    stored_at: dict[int, datetime] = {}
    for wal in files:
        stored_at[wal.file.timeline] = max(wal.stored.at, stored_at.get(wal.file.timeline, wal.stored.at))
    lines: dict[int, Line] = {}
    for timeline, at in stored_at.items():
        forks = archive.history(timeline)
        if forks is None and any(backup.timeline < timeline for backup in backups):
            raise BackupInvalid(f"the history of timeline {timeline} of the cluster {archive.cluster} is not stored")
        lines[timeline] = Line(forks or (), at)
    return lines


def _remains(cluster: str, backups: Sequence[Backup], objects: Sequence[Stored], now: datetime) -> tuple[Stored, ...]:
    """Return the objects of backups that never became whole: a later one did, which ran alone, a day after them."""
    names = {record_name(cluster, backup.id) for backup in backups}
    listed = {_folder(name) for name in (*names, *(stored.name for stored in objects)) if is_record(name)}
    newest = max((stored.at for stored in objects if stored.name in names), default=None)
    if newest is None:
        return ()
    before = min(newest, now) - _ABANDONED
    return tuple(
        stored
        for stored in objects
        if stored.name.startswith(f"{BACKUPS}{cluster}/") and _folder(stored.name) not in listed and stored.at < before
    )


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
