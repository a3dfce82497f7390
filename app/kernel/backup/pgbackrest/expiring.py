"""Expires backups and WAL by our retention; pgBackRest's own settings of it are not used."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from app.kernel.backup import Backup
from app.kernel.backup.engine import Advance, Pruned
from app.kernel.backup.pgbackrest.program import Program
from app.kernel.backup.pgbackrest.repository import Repository, read, segments, stored_at
from app.kernel.backup.retention import Line, Policy, retained, trusted_now
from app.kernel.backup.timelines import history_name, history_of, lsn_number, wal_file

_EXPIRED = re.compile(r"remove archive, start = ([0-9A-F]{24}), stop = ([0-9A-F]{24})")


def expire(
    program: Program, policy: Policy, now: datetime, advance: Advance = lambda _: None, *, is_dry: bool
) -> Pruned:
    """Expire the backups that a retention does not keep, and the WAL before those of its window."""
    repository = read(program)
    present, end = _present(repository), trusted_now(repository.backups, now)
    if end is None:
        return Pruned(kept=tuple(backup.id for backup in present))
    window: list[Backup] = []
    longer: list[Backup] = []
    for cluster in {backup.cluster for backup in repository.backups}:
        found = [backup for backup in repository.backups if backup.cluster == cluster]
        archive = next((name for of, name, _ in repository.archives if of == cluster), "")
        lines = _lines(program, archive, found[-1].wal_segment_bytes) if archive else {}
        of_cluster = retained(found, lines, policy, end)
        window += of_cluster.window
        longer += of_cluster.longer
    kept = (*window, *longer, *_damaged(repository, policy, now))
    ids = {each for backup in kept for each in (backup.id, *backup.depends_on)}
    expired = [backup for backup in present if backup.id not in ids]
    for backup in reversed(expired if not is_dry else expired[:0]):  # what depends on others is newer
        advance(0)
        program.run("expire", "--repo=1", f"--set={backup.id}")
    now_there = read(program)
    kept_fulls = [one for one in _present(now_there) if one.id in now_there.full and one not in expired]
    fulls, size = fulls_with_wal(kept_fulls, window), window[0].wal_segment_bytes
    return Pruned(
        tuple(backup.id for backup in expired),
        tuple(backup.id for backup in present if backup.id in ids),
        _expire_wal(program, present[0].finished_at, fulls, size, is_dry=is_dry),
        sum(backup.stored_bytes for backup in expired),
    )


def _present(repository: Repository) -> Sequence[Backup]:
    """Return all backups, oldest first."""
    return sorted((*repository.backups, *repository.damaged), key=lambda backup: (backup.finished_at, backup.id))


def _damaged(repository: Repository, policy: Policy, now: datetime) -> Sequence[Backup]:
    """Return the damaged backups of the window, which are kept beside the good ones."""
    end = trusted_now(_present(repository), now)
    return [one for one in repository.damaged if end is None or one.finished_at >= end - policy.keep]


def fulls_with_wal(fulls: Sequence[Backup], window: Sequence[Backup]) -> int:
    """Return how many of the newest full backups keep their WAL, so that all since any backup of the window is kept.

    pgBackRest keeps WAL from the oldest of these on, and the oldest backup of the window may be a differential one.
    """
    since: dict[str, tuple[int, int]] = {}
    for backup in window:
        since[backup.cluster] = min(_begin(backup), since.get(backup.cluster, _begin(backup)))
    oldest = [
        max((n for n, full in enumerate(fulls) if full.cluster == cluster and _begin(full) <= begin), default=0)
        for cluster, begin in since.items()
    ]
    return len(fulls) - min(oldest)


def _begin(backup: Backup) -> tuple[int, int]:
    return backup.timeline, lsn_number(backup.start_lsn)


def _lines(program: Program, archive: str, size: int) -> dict[int, Line]:
    """Return the timelines of an archive: what they come from, and when WAL of them was stored last."""
    newest = {file.timeline: file.name for file in segments(program, archive, size)}
    found: dict[int, Line] = {}
    for timeline, name in newest.items():
        forks = ()
        if timeline > 1:
            path = f"archive/{program.stanza}/{archive}/{history_name(timeline)}"
            forks = history_of(program.run("repo-get", "--repo=1", "--ignore-missing", path))
        found[timeline] = Line(forks, stored_at(program, archive, name))
    return found


def _expire_wal(program: Program, oldest: datetime, fulls: int, size: int, *, is_dry: bool) -> int:
    """Expire the WAL before the newest full backups but what older ones need; return the number of its segments.

    In the same run, pgBackRest expires backups by age: none is that old.
    """
    days = (datetime.now(UTC) - oldest).days + 2
    printed = program.run(
        *("expire", "--repo=1", "--repo1-retention-full-type=time", f"--repo1-retention-full={days}"),
        *("--repo1-retention-archive-type=full", f"--repo1-retention-archive={fulls}"),
        *("--log-level-console=detail", *(["--dry-run"] if is_dry else [])),
    )
    return sum(_between(first, last, size) for first, last in _EXPIRED.findall(printed))


def _between(first: str, last: str, size: int) -> int:
    begin, end = (wal_file(name, size) for name in (first, last))
    return 1 + (end.number or 0) - (begin.number or 0) if begin and end else 0
