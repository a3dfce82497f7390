"""Builds the use cases of platform from resources. Imports what a provider needs when it is opened, not before."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.kernel.db.postgres import database
from app.kernel.process import Process

if TYPE_CHECKING:
    from app.modules.platform.usecases.list_audit import ListAudit
    from app.modules.platform.usecases.list_processes import ListProcesses
    from app.modules.platform.usecases.prune import Prune
    from app.modules.platform.usecases.record_heartbeat import RecordHeartbeat
    from app.modules.platform.usecases.watch_snapshots import WatchSnapshots


@dataclass(frozen=True, slots=True)
class Platform:
    """The use cases of the platform API."""

    list_processes: "ListProcesses"
    list_audit: "ListAudit"


@dataclass(frozen=True, slots=True)
class UpkeepJobs:
    """The use cases that keep the kernel's tables tidy."""

    prune: "Prune"
    watch_snapshots: "WatchSnapshots"


@asynccontextmanager
async def platform(p: Process) -> AsyncGenerator[Platform]:
    """Provide the use cases of the API."""
    from app.kernel.audit import Audit
    from app.kernel.registry import Registry
    from app.modules.platform.usecases.list_audit import ListAudit
    from app.modules.platform.usecases.list_processes import ListProcesses

    db = await p.use(database)
    yield Platform(ListProcesses(Registry(db)), ListAudit(db, Audit()))


@asynccontextmanager
async def record_heartbeat(p: Process) -> AsyncGenerator["RecordHeartbeat"]:
    """Provide the use case of the heartbeat job."""
    from app.modules.platform.postgres import PostgresHeartbeats
    from app.modules.platform.usecases.record_heartbeat import RecordHeartbeat

    yield RecordHeartbeat(await p.use(database), PostgresHeartbeats())


@asynccontextmanager
async def upkeep(p: Process) -> AsyncGenerator[UpkeepJobs]:
    """Provide the use cases of the upkeep jobs."""
    from app.kernel.config import KeepSettings
    from app.kernel.upkeep import Upkeep
    from app.modules.platform.usecases.prune import Prune
    from app.modules.platform.usecases.watch_snapshots import WatchSnapshots

    db, tables = await p.use(database), Upkeep(p.settings[KeepSettings])
    yield UpkeepJobs(Prune(db, tables), WatchSnapshots(db, tables))
