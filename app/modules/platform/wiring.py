"""Builds the use cases of platform from resources. Imports what a provider needs when it is opened, not before."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from app.kernel.db.postgres import database
from app.kernel.process import Process
from app.modules.platform.postgres import PostgresHeartbeats

if TYPE_CHECKING:
    from app.modules.platform.usecases.list_processes import ListProcesses
    from app.modules.platform.usecases.record_heartbeat import RecordHeartbeat


@asynccontextmanager
async def list_processes(p: Process) -> AsyncGenerator["ListProcesses"]:
    """Provide the use case of the API."""
    from app.kernel.registry import Registry
    from app.modules.platform.usecases.list_processes import ListProcesses

    yield ListProcesses(Registry(await p.use(database)))


@asynccontextmanager
async def record_heartbeat(p: Process) -> AsyncGenerator["RecordHeartbeat"]:
    """Provide the use case of the heartbeat job."""
    from app.modules.platform.usecases.record_heartbeat import RecordHeartbeat

    yield RecordHeartbeat(await p.use(database), PostgresHeartbeats())
