"""Builds the use cases of platform from resources. Imports what a provider needs when it is opened, not before."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.kernel.db.postgres import database
from app.kernel.process import Process

if TYPE_CHECKING:
    from app.modules.platform.usecases.list_audit import ListAudit
    from app.modules.platform.usecases.list_processes import ListProcesses
    from app.modules.platform.usecases.notify_errors import NotifyErrors
    from app.modules.platform.usecases.prune import Prune
    from app.modules.platform.usecases.record_heartbeat import RecordHeartbeat
    from app.modules.platform.usecases.send_message import SendMessage


@dataclass(frozen=True, slots=True)
class Platform:
    """The use cases of the platform API."""

    list_processes: "ListProcesses"
    list_audit: "ListAudit"


@dataclass(frozen=True, slots=True)
class Alerting:
    """The use cases that tell people of errors."""

    notify_errors: "NotifyErrors"
    send_message: "SendMessage"


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
async def alerting(p: Process) -> AsyncGenerator[Alerting]:
    """Provide the use cases that tell people of errors."""
    from app.kernel.config import SentinelSettings, current_environment
    from app.kernel.queue.postgres import PostgresQueue
    from app.kernel.sentinel.postgres import PostgresErrors
    from app.modules.platform.recipients import AppriseRecipients
    from app.modules.platform.usecases.notify_errors import NotifyErrors
    from app.modules.platform.usecases.send_message import SendMessage

    settings = p.settings[SentinelSettings]
    recipients = AppriseRecipients(settings.notify_urls.get_secret_value())
    errors, environment = PostgresErrors(settings.cooldown), current_environment(os.environ)
    yield Alerting(NotifyErrors(errors, recipients, PostgresQueue(), environment), SendMessage(recipients))


@asynccontextmanager
async def prune(p: Process) -> AsyncGenerator["Prune"]:
    """Provide the use case of the hourly job."""
    from app.kernel.config import KeepSettings
    from app.kernel.upkeep import Upkeep
    from app.modules.platform.usecases.prune import Prune

    keep = p.settings[KeepSettings]
    upkeep = Upkeep(keep.finished_jobs, keep.dead_letters, keep.events, keep.audit, keep.errors)
    yield Prune(await p.use(database), upkeep)
