"""The state of backups and what is wrong with them, by what the database has recorded: no process needs the target."""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, LiteralString, NamedTuple
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.backup import QUEUE, Kind
from app.kernel.config import BackupSettings
from app.kernel.product import NAME
from app.kernel.text import exact, lasting, size_text

DRILL_MAX_AGE_S = 8 * 86400.0
"""A newest good drill older than this is reported: they run weekly."""
_SERIOUS = 6
"""WAL that is stored so many times later than `backup.max_wal_lag` is a failure."""

_GAP = re.compile(r"WAL from \S+ to \S+ of timeline \d+ is not stored")
"""The text of a Gap."""

COLUMNS: LiteralString = """
    SELECT id, kind, state, engine, backup_id, started_at, finished_at, size_bytes, stored_bytes, problem, runner,
        details
    FROM kernel.backup_runs
"""
# a run holds a lock, see runs.py; what a clock that was ahead has dated later than now would hide all that follows
_LATEST: LiteralString = """
    SELECT DISTINCT ON (kind, state) id, kind, state, engine, backup_id, started_at, finished_at, size_bytes,
        stored_bytes, problem, runner, details
    FROM (
        SELECT id, kind, CASE WHEN is_dead THEN 'failed' ELSE state END AS state, engine, backup_id, started_at,
            finished_at, size_bytes, stored_bytes, runner, details,
            CASE WHEN is_dead THEN 'its process ended' ELSE problem END AS problem
        FROM kernel.backup_runs run, LATERAL (
            SELECT run.state = 'running' AND NOT pg_is_in_recovery() AND NOT EXISTS (
                SELECT FROM pg_locks
                WHERE locktype = 'advisory' AND objsubid = 2
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                    AND classid = (hashtext('backup')::bigint & 4294967295)::oid
                    AND objid = (hashtext(run.kind)::bigint & 4294967295)::oid
            ) AS is_dead
        ) found
        WHERE started_at < now() + interval '5 minutes'
    ) runs
    ORDER BY kind, state, started_at DESC
"""
_NOW: LiteralString = """
    SELECT now(), (SELECT min(at) FROM kernel.rollouts),
        EXISTS (SELECT FROM kernel.queues WHERE name = %s AND seen_at > now() - interval '3 minutes'),
        c.system_identifier::text, w.cluster, w.timeline, w.lsn::text, w.stored_at, w.reported_at, w.problem,
        CASE WHEN w.cluster IS NULL THEN NULL
            WHEN NOT pg_is_in_recovery() AND pg_current_wal_lsn() <= w.lsn THEN 0
            ELSE greatest(extract(epoch FROM now() - coalesce(w.waiting_since, w.reported_at)), 0) END::float8
    FROM pg_control_system() c LEFT JOIN kernel.backup_wal w ON w.cluster = c.system_identifier::text
"""


@dataclass(frozen=True, slots=True)
class BackupRun:
    """A run of a backup, a drill, a pruning or a verification. `details` depend on the kind."""

    id: UUID
    kind: Kind
    state: Literal["running", "succeeded", "failed"]
    engine: str
    backup_id: str | None
    started_at: datetime
    finished_at: datetime | None
    size_bytes: int | None
    stored_bytes: int | None
    problem: str | None
    runner: str
    details: Mapping[str, Any]

    columns: ClassVar[Columns] = (
        Column("run", "id"),
        Column("kind"),
        Column("state", is_state=True),
        Column("started", "started_at"),
        Column("took", lambda run: lasting(run.took_s)),
        Column("backup", lambda run: run.backup_id),
        Column("size", lambda run: size_text(run.size_bytes)),
        Column("stored", lambda run: size_text(run.stored_bytes)),
        Column("problem"),
    )

    @property
    def took_s(self) -> float | None:
        """Duration in seconds; None while it runs."""
        return None if self.finished_at is None else (self.finished_at - self.started_at).total_seconds()

    @property
    def rto_s(self) -> float | None:
        """Of a drill: seconds until the restored server answered."""
        return self.details.get("rto_s")

    @property
    def rpo_s(self) -> float | None:
        """Of a drill: age in seconds of the last restored commit when the drill began."""
        return self.details.get("rpo_s")

    @property
    def restored_to(self) -> datetime | None:
        """Of a drill: time of the last restored commit."""
        at = self.details.get("restored_to")
        return datetime.fromisoformat(at) if at else None


@dataclass(frozen=True, slots=True)
class StoredWal:
    """How far the WAL of this database cluster is stored. `lag_s` is the age of the oldest WAL that is not."""

    cluster: str
    timeline: int
    lsn: str
    stored_at: datetime
    reported_at: datetime
    problem: str | None
    lag_s: float

    @property
    def has_gap(self) -> bool:
        """Return whether a part of it is missing since the oldest backup that needs it."""
        return self.problem is not None and _GAP.search(self.problem) is not None


class Problem(NamedTuple):
    """What is wrong: the name of its alert and runbook, a line about it, and the command that helps."""

    type: str
    level: Literal["warn", "fail"]
    text: str
    fix: str


@dataclass(frozen=True, slots=True)
class BackupState:
    """What is recorded about backups: the newest runs of each kind and state, and the stored WAL.

    `is_attended` says whether somebody works on the queue of backups. `cluster` is the system identifier of the server.
    """

    at: datetime
    since: datetime | None
    is_attended: bool
    cluster: str
    wal: StoredWal | None
    runs: Mapping[tuple[str, str], BackupRun]

    def good(self, kind: Kind) -> BackupRun | None:
        """Return the newest run that succeeded."""
        return self.runs.get((kind, "succeeded"))

    def last(self, kind: Kind) -> BackupRun | None:
        """Return the newest run that ended."""
        ended = [run for state in ("succeeded", "failed") if (run := self.runs.get((kind, state)))]
        return max(ended, key=lambda run: run.started_at, default=None)

    def failed(self, kind: Kind) -> BackupRun | None:
        """Return the newest run that ended, if it failed."""
        return last if (last := self.last(kind)) is not None and last.state == "failed" else None

    def running(self) -> list[BackupRun]:
        """Return the runs that have not ended; the process of one may have been killed."""
        found = [self.runs.get((kind, "running")) for kind in ("backup", "drill")]
        return [run for run in found if run is not None and (run.started_at > self._newest(run.kind))]

    def _newest(self, kind: Kind) -> datetime:
        last = self.last(kind)
        return last.started_at if last else datetime.min.replace(tzinfo=self.at.tzinfo)

    def age_s(self, run: BackupRun) -> float:
        """Return how many seconds ago a run ended."""
        return (self.at - (run.finished_at or run.started_at)).total_seconds()

    def is_expected(self, settings: BackupSettings) -> bool:
        """Return whether there should be backups: the settings say so, or one was recorded."""
        return bool(settings.target) or settings.engine != "builtin" or bool(self.runs) or self.wal is not None

    def is_long(self, since: datetime | None, seconds: float) -> bool:
        """Return whether a moment is longer ago than that."""
        return since is not None and self.at - since > timedelta(seconds=seconds)


async def look(ask: Callable[[LiteralString, tuple[Any, ...]], Awaitable[list[tuple[Any, ...]]]]) -> BackupState:
    """Return what is recorded; `ask` runs a statement. Raises what it raises."""
    runs = [BackupRun(*row) for row in await ask(_LATEST, ())]
    ((at, since, is_attended, cluster, *stored),) = await ask(_NOW, (QUEUE,))
    wal = None if stored[0] is None else StoredWal(*stored)
    return BackupState(at, since, is_attended, cluster, wal, {(run.kind, run.state): run for run in runs})


def problems(state: BackupState, settings: BackupSettings, *, is_published: bool) -> Iterator[Problem]:
    """Yield what is wrong with backups; nothing where none are expected.

    Nothing either in an environment for one machine (`is_published`) while no process works on backups.
    """
    if not state.is_expected(settings) or (is_published and not state.is_attended):
        return
    if not state.is_attended:
        yield Problem("BackupUnattended", "fail", f"nobody works on the queue {QUEUE}", f"{NAME} run-backup-agent")
    yield from _of_backups(state, settings, is_published=is_published)
    yield from _of_wal(state, settings)
    yield from _of_drills(state)


def _of_backups(state: BackupState, settings: BackupSettings, *, is_published: bool) -> Iterator[Problem]:
    good = state.good("backup")
    create = f"{NAME} backup {'record' if settings.engine == 'managed' else 'create'}"
    if (run := state.failed("backup")) is not None:
        yield Problem("BackupFailed", "warn", f"the backup of {exact(run.started_at)} failed: {run.problem}", create)
    if (run := state.failed("verify")) is not None:
        text = f"the verification of {exact(run.started_at)} failed: {run.problem}"
        yield Problem("BackupFailed", "fail", text, f"{NAME} backup verify --all")
    if (run := state.failed("prune")) is not None:
        text = f"the pruning of {exact(run.started_at)} failed: {run.problem}"
        yield Problem("BackupFailed", "warn", text, f"{NAME} backup prune")
    if good is None:
        is_due = state.is_long(state.since, settings.max_age)
        if is_due or not is_published:
            text = "there is no backup of this database"
            yield Problem("BackupMissing", "fail" if is_due else "warn", text, create)
    elif state.is_long(good.finished_at, settings.max_age):
        age, most = state.age_s(good) / 3600, settings.max_age / 3600
        text = f"the newest backup is {age:.0f} h old, more than backup.max_age ({most:.3g} h)"
        yield Problem("BackupStale", "fail", text, create)


def _of_wal(state: BackupState, settings: BackupSettings) -> Iterator[Problem]:
    wal, status = state.wal, f"{NAME} backup status"
    if wal is None:
        if settings.target and settings.engine == "builtin" and settings.wal != "none" and state.good("backup"):
            text = "WAL is not stored, so only the moments of backups can be restored"
            yield Problem("WalNotStored", "fail", text, f"{NAME} run-backup-agent")
        return
    most = max(settings.max_wal_lag, 2 * settings.wal_interval)
    if wal.problem and wal.has_gap:
        yield Problem("WalGap", "fail", wal.problem, f"{NAME} backup create")
    elif wal.problem:
        yield Problem("WalNotStored", "fail", f"WAL is not stored now: {wal.problem}", status)
    if wal.lag_s > most and (wal.has_gap or not wal.problem):
        level = "fail" if wal.lag_s > _SERIOUS * most else "warn"
        text = f"WAL has waited for {lasting(wal.lag_s)} to be stored, longer than backup.max_wal_lag"
        yield Problem("WalNotStored", level, f"{text} ({lasting(settings.max_wal_lag)})", status)


def _of_drills(state: BackupState) -> Iterator[Problem]:
    good, backup, drill = state.good("drill"), state.good("backup"), f"{NAME} backup drill"
    if (run := state.failed("drill")) is not None:
        yield Problem("DrillFailed", "fail", f"the drill of {exact(run.started_at)} failed: {run.problem}", drill)
    elif good is not None and state.is_long(good.finished_at, DRILL_MAX_AGE_S):
        age = lasting(state.age_s(good))
        yield Problem("DrillStale", "warn", f"no backup was restored for {age}: drills should run every week", drill)
    elif good is None and backup is not None and state.is_long(state.since, DRILL_MAX_AGE_S):
        yield Problem("DrillStale", "warn", "no backup of this database was ever restored", drill)
