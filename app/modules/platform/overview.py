"""The overview: is it well, and if not, what to do."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from app.kernel.actions import Database, read
from app.kernel.actions.columns import Column, Columns
from app.kernel.backup.watching import look
from app.kernel.config import Settings
from app.kernel.db import now
from app.kernel.doctor import Attention, Need
from app.kernel.process.registry import LiveProcess, Registry
from app.kernel.process.rollouts import Release, Rollouts
from app.kernel.queue.queues import ListedQueue, QueueAdmin
from app.kernel.queue.schedules import ListedSchedule, ScheduleAdmin
from app.kernel.sentinel import StoredError
from app.kernel.sentinel.postgres import Errors
from app.kernel.series import Point, Series
from app.modules.platform.backups import BackupSummary, summary

_HOUR_S, _DAY_S = 3600.0, 86400.0
_ERRORS = 5


@dataclass(frozen=True, slots=True)
class Group:
    """Live processes of one name, version and state; `started_at` is of the oldest one."""

    name: str
    version: str
    state: str
    count: int
    hosts: list[str]
    memory_bytes: int
    started_at: datetime
    last_seen_at: datetime

    columns: ClassVar[Columns] = (
        Column("process", "name"),
        Column("count"),
        Column("state", is_state=True),
        Column("version"),
        Column("memory", lambda group: f"{group.memory_bytes / 1e6:.0f} MB"),
        Column("hosts", lambda group: ", ".join(group.hosts), extra=True),
        Column("since", "started_at"),
    )


@dataclass(frozen=True, slots=True)
class DeploymentOverview:
    """The state of a deployment. Empty `attention` means that all is well.

    `last_hour` and `last_day` sum up the points of `hour` (one a minute) and `day` (one an hour).
    """

    at: datetime
    environment: str
    is_well: bool
    attention: list[Need]
    last_hour: Point | None
    last_day: Point | None
    releases: list[Release]
    processes: list[Group]
    queues: list[ListedQueue]
    schedules: list[ListedSchedule]
    errors: list[StoredError]
    backup: BackupSummary | None
    hour: list[Point]
    day: list[Point]


@dataclass(frozen=True, slots=True)
class Overview:
    """See at a glance whether a deployment is well."""

    attention: Attention
    series: Series
    rollouts: Rollouts
    registry: Registry
    queues: QueueAdmin
    schedules: ScheduleAdmin
    errors: Errors
    settings: Settings

    @read("platform.overview", GET="/platform/v1/overview", permission="platform:overview:read")
    async def get(self, db: Database) -> DeploymentOverview:
        """Show what needs attention, with its remedy; then traffic, queues, processes, schedules and errors."""
        at = await now(db)
        needs, queues, schedules = await self.attention.needs(), await self.queues.all(db), await self.schedules.all(db)
        hour, last_hour = await self.series.period(db, "minute", _HOUR_S)
        day, last_day = await self.series.period(db, "hour", _DAY_S)
        return DeploymentOverview(
            at,
            self.settings.environment,
            not needs,
            needs,
            last_hour,
            last_day,
            await self.rollouts.releases(db, at - timedelta(seconds=_DAY_S)),
            grouped(await self.registry.alive()),
            queues,
            schedules,
            await self.errors.latest(db, _ERRORS),
            summary(await look(db.all)),
            hour,
            day,
        )


def grouped(alive: list[LiveProcess]) -> list[Group]:
    """Return live processes by name, version and state."""
    found: dict[tuple[str, str, str], list[LiveProcess]] = {}
    for process in alive:
        found.setdefault((process.name, process.version, process.state), []).append(process)
    return [
        Group(
            *key,
            len(members),
            sorted({member.host for member in members}),
            sum(member.memory_bytes or 0 for member in members),
            min(member.started_at for member in members),
            max(member.last_seen_at for member in members),
        )
        for key, members in found.items()
    ]
