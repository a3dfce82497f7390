"""Runs of backups, drills, prunings and verifications, their state, and actions that enqueue them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from annotated_types import Interval

from app.kernel.actions import Database, Doc, Note, Transaction, change, read
from app.kernel.actions.columns import Column, Columns
from app.kernel.backup.watching import COLUMNS, BackupRun, BackupState, StoredWal, look
from app.kernel.db import where
from app.kernel.doctor import Attention, Need
from app.kernel.errors import NotFound
from app.kernel.paging import Cursor, Limit, Page, after, next_cursor
from app.kernel.product import NAME
from app.kernel.queue import Task
from app.kernel.queue.enqueue import Queue
from app.kernel.text import lasting, size_text
from app.modules.platform.backup_jobs import BACKUP, DRILL, PRUNE

_CHECKS = frozenset({"backups", "wal", "drills"})


class BackupRunNotFound(NotFound):
    """The run does not exist, or is past its retention."""

    code = "BACKUP_RUN_NOT_FOUND"
    title = "There is no such run of a backup"
    hint = f"{NAME} backup status"


@dataclass(frozen=True, slots=True)
class RunRef:
    """A run of a backup, a drill, a pruning or a verification."""

    id: Annotated[UUID, Doc("Id of the run.")]


@dataclass(frozen=True, slots=True)
class RunsWanted:
    """Filters and page of a list of runs."""

    kind: Annotated[Literal["backup", "drill", "prune", "verify"] | None, Doc("Filter by kind.")] = None
    state: Annotated[Literal["running", "succeeded", "failed"] | None, Doc("Filter by state.")] = None
    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class DrillsWanted:
    """How many drills to show."""

    drills: Annotated[int, Interval(ge=1, le=200), Doc("Maximum number of drills.")] = 53


@dataclass(frozen=True, slots=True)
class Drill:
    """What a drill measured, in seconds: recovery time, and window of loss."""

    at: datetime
    rto_s: float | None
    rpo_s: float | None


@dataclass(frozen=True, slots=True)
class BackupStatus:
    """Whether backups are well: the newest good ones, the stored WAL, and what needs attention.

    `last_backup` and `last_drill` are the last ones that ended, also if they failed. `drills` are the good ones, oldest
    first. `is_attended` says whether somebody works on the queue of backups.
    """

    at: datetime
    is_attended: bool
    attention: list[Need]
    backup: BackupRun | None
    last_backup: BackupRun | None
    wal: StoredWal | None
    drill: BackupRun | None
    last_drill: BackupRun | None
    running: list[BackupRun]
    drills: list[Drill]


@dataclass(frozen=True, slots=True)
class BackupSummary:
    """Backups in one line: the newest good backup and drill, and for how long WAL has waited to be stored."""

    backup_at: datetime | None
    size_bytes: int | None
    wal_lag_s: float | None
    drill_at: datetime | None
    rto_s: float | None
    rpo_s: float | None

    columns: ClassVar[Columns] = (
        Column("newest backup", "backup_at"),
        Column("size", lambda summary: size_text(summary.size_bytes)),
        Column("WAL lag", lambda summary: lasting(summary.wal_lag_s)),
        Column("last drill", "drill_at"),
        Column("RTO", lambda summary: lasting(summary.rto_s)),
        Column("RPO", lambda summary: lasting(summary.rpo_s)),
    )


def summary(state: BackupState) -> BackupSummary | None:
    """Return backups in one line; None without any."""
    backup, drill, wal = state.good("backup"), state.good("drill"), state.wal
    if not state.runs and wal is None:
        return None
    return BackupSummary(
        backup and backup.finished_at,
        backup and backup.size_bytes,
        wal and wal.lag_s,
        drill and drill.finished_at,
        drill and drill.rto_s,
        drill and drill.rpo_s,
    )


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The job that was enqueued, or that waits already."""

    job_id: UUID

    def __str__(self) -> str:
        return f"enqueued the job {self.job_id}"


@dataclass(frozen=True, slots=True)
class Backups:
    """See and start backups, drills and prunings."""

    queue: Queue
    attention: Attention

    @read(
        "platform.list_backups",
        GET="/platform/v1/backups",
        permission="platform:backups:read",
        empty=f"the first one is taken at night, or now: {NAME} backup create",
    )
    async def list(self, db: Database, wanted: RunsWanted) -> Page[BackupRun]:
        """List runs of backups, drills, prunings and verifications, newest first."""
        last = after(wanted.cursor)
        sql = COLUMNS + where(
            "kind = %(kind)s" if wanted.kind else "",
            "state = %(state)s" if wanted.state else "",
            "id < %(last)s" if last else "",
        )
        given = {"kind": wanted.kind, "state": wanted.state, "last": last, "limit": wanted.limit}
        found = [BackupRun(*row) for row in await db.all(sql + "ORDER BY id DESC LIMIT %(limit)s", given)]
        return Page(found, next_cursor(found, wanted.limit))

    @read("platform.get_backup_status", GET="/platform/v1/backups/status", permission="platform:backups:read")
    async def status(self, db: Database, wanted: DrillsWanted) -> BackupStatus:
        """Show the newest backup, how far WAL is stored, what drills measured, and what needs attention."""
        state = await look(db.all)
        rows = await db.all(
            COLUMNS + "WHERE kind = 'drill' AND state = 'succeeded' ORDER BY started_at DESC LIMIT %s",
            (wanted.drills,),
        )
        runs = [BackupRun(*row) for row in reversed(rows)]
        return BackupStatus(
            state.at,
            state.is_attended,
            [need for need in await self.attention.needs() if need.check in _CHECKS],
            state.good("backup"),
            state.last("backup"),
            state.wal,
            state.good("drill"),
            state.last("drill"),
            state.running(),
            [Drill(run.started_at, run.rto_s, run.rpo_s) for run in runs],
        )

    @read(
        "platform.get_backup_run",
        GET="/platform/v1/backups/{id}",
        permission="platform:backups:read",
        raises=(BackupRunNotFound,),
    )
    async def get(self, db: Database, run: RunRef) -> BackupRun:
        """Show a run with its results: of a drill its checks, recovery time and window of loss."""
        row = await db.one(COLUMNS + "WHERE id = %s", (run.id,))
        if row is None:
            raise BackupRunNotFound
        return BackupRun(*row)

    @change("platform.create_backup", POST="/platform/v1/backups", permission="platform:backups:write", status=202)
    async def create(self, tx: Transaction, note: Note) -> Enqueued:
        """Enqueue a backup. Whoever works on the queue of backups takes it. Safe to repeat while it waits or runs."""
        return await self._enqueue(tx, BACKUP, note)

    @change("platform.run_drill", POST="/platform/v1/backups/drill", permission="platform:backups:write", status=202)
    async def drill(self, tx: Transaction, note: Note) -> Enqueued:
        """Enqueue a drill, which restores the newest backup on a scratch server. Safe to repeat while it waits."""
        return await self._enqueue(tx, DRILL, note)

    @change(
        "platform.prune_backups",
        POST="/platform/v1/backups/prune",
        permission="platform:backups:write",
        status=202,
        confirm="Delete the backups and the WAL that the retention does not keep?",
    )
    async def prune(self, tx: Transaction, note: Note) -> Enqueued:
        """Enqueue a pruning, which deletes what the retention does not keep. Safe to repeat while it waits or runs."""
        return await self._enqueue(tx, PRUNE, note)

    async def _enqueue(self, tx: Transaction, wanted: Task[None], note: Note) -> Enqueued:
        job_id = await self.queue.enqueue(tx, wanted, unique_key="asked")
        note.details["job_id"] = str(job_id)
        return Enqueued(job_id)
