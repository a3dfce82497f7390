"""Builds the use cases of platform from resources. Imports what a provider needs when it is opened, not before."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.kernel.audit import Audit
from app.kernel.db.postgres import database
from app.kernel.process import Process

if TYPE_CHECKING:
    from app.modules.platform.recipients import NotifyRecipients
    from app.modules.platform.usecases.cancel_job import CancelJob
    from app.modules.platform.usecases.count_dead_letters import CountDeadLetters
    from app.modules.platform.usecases.count_replay import CountReplay
    from app.modules.platform.usecases.get_dead_letter import GetDeadLetter
    from app.modules.platform.usecases.get_error import GetError
    from app.modules.platform.usecases.get_job import GetJob
    from app.modules.platform.usecases.limit_queue import LimitQueue
    from app.modules.platform.usecases.list_audit import ListAudit
    from app.modules.platform.usecases.list_dead_letters import ListDeadLetters
    from app.modules.platform.usecases.list_errors import ListErrors
    from app.modules.platform.usecases.list_events import ListEvents
    from app.modules.platform.usecases.list_jobs import ListJobs
    from app.modules.platform.usecases.list_processes import ListProcesses
    from app.modules.platform.usecases.list_queues import ListQueues
    from app.modules.platform.usecases.list_schedules import ListSchedules
    from app.modules.platform.usecases.mute_error import MuteError
    from app.modules.platform.usecases.notify_errors import NotifyErrors
    from app.modules.platform.usecases.pause_queue import PauseQueue
    from app.modules.platform.usecases.pause_schedule import PauseSchedule
    from app.modules.platform.usecases.prune import Prune
    from app.modules.platform.usecases.purge_dead_letter import PurgeDeadLetter
    from app.modules.platform.usecases.purge_dead_letters import PurgeDeadLetters
    from app.modules.platform.usecases.record_heartbeat import RecordHeartbeat
    from app.modules.platform.usecases.replay_events import ReplayEvents
    from app.modules.platform.usecases.resolve_error import ResolveError
    from app.modules.platform.usecases.resume_queue import ResumeQueue
    from app.modules.platform.usecases.resume_schedule import ResumeSchedule
    from app.modules.platform.usecases.retry_dead_letter import RetryDeadLetter
    from app.modules.platform.usecases.retry_dead_letters import RetryDeadLetters
    from app.modules.platform.usecases.retry_job import RetryJob
    from app.modules.platform.usecases.send_message import SendMessage
    from app.modules.platform.usecases.trigger_schedule import TriggerSchedule
    from app.modules.platform.usecases.try_recipients import TryRecipients

AUDIT = Audit()


@dataclass(frozen=True, slots=True)
class Platform:
    """The use cases of looking at the deployment."""

    list_processes: "ListProcesses"
    list_audit: "ListAudit"


@dataclass(frozen=True, slots=True)
class ErrorControl:
    """The use cases of captured errors."""

    list: "ListErrors"
    get: "GetError"
    resolve: "ResolveError"
    mute: "MuteError"


@dataclass(frozen=True, slots=True)
class Alerting:
    """The use cases that tell people of errors."""

    notify_errors: "NotifyErrors"
    send_message: "SendMessage"


@dataclass(frozen=True, slots=True)
class JobControl:
    """The use cases of jobs."""

    list: "ListJobs"
    get: "GetJob"
    retry: "RetryJob"
    cancel: "CancelJob"


@dataclass(frozen=True, slots=True)
class QueueControl:
    """The use cases of queues."""

    list: "ListQueues"
    pause: "PauseQueue"
    resume: "ResumeQueue"
    limit: "LimitQueue"


@dataclass(frozen=True, slots=True)
class DeadLetterControl:
    """The use cases of dead letters."""

    list: "ListDeadLetters"
    get: "GetDeadLetter"
    count: "CountDeadLetters"
    retry: "RetryDeadLetter"
    retry_some: "RetryDeadLetters"
    purge: "PurgeDeadLetter"
    purge_some: "PurgeDeadLetters"


@dataclass(frozen=True, slots=True)
class ScheduleControl:
    """The use cases of schedules."""

    list: "ListSchedules"
    trigger: "TriggerSchedule"
    pause: "PauseSchedule"
    resume: "ResumeSchedule"


@dataclass(frozen=True, slots=True)
class EventControl:
    """The use cases of events."""

    list: "ListEvents"
    count_replay: "CountReplay"
    replay: "ReplayEvents"


@asynccontextmanager
async def platform(p: Process) -> AsyncGenerator[Platform]:
    """Provide the use cases of looking at the deployment."""
    from app.kernel.registry import Registry
    from app.modules.platform.usecases.list_audit import ListAudit
    from app.modules.platform.usecases.list_processes import ListProcesses

    db = await p.use(database)
    yield Platform(ListProcesses(Registry(db)), ListAudit(db, AUDIT))


@asynccontextmanager
async def jobs(p: Process) -> AsyncGenerator[JobControl]:
    """Provide the use cases of jobs."""
    from app.kernel.queue.jobs import Jobs
    from app.modules.platform.usecases.cancel_job import CancelJob
    from app.modules.platform.usecases.get_job import GetJob
    from app.modules.platform.usecases.list_jobs import ListJobs
    from app.modules.platform.usecases.retry_job import RetryJob

    db, stored = await p.use(database), Jobs()
    yield JobControl(
        ListJobs(db, stored), GetJob(db, stored), RetryJob(db, stored, AUDIT), CancelJob(db, stored, AUDIT)
    )


@asynccontextmanager
async def queues(p: Process) -> AsyncGenerator[QueueControl]:
    """Provide the use cases of queues."""
    from app.kernel.config import QueueSettings
    from app.kernel.queue.queues import Queues
    from app.modules.platform.usecases.limit_queue import LimitQueue
    from app.modules.platform.usecases.list_queues import ListQueues
    from app.modules.platform.usecases.pause_queue import PauseQueue
    from app.modules.platform.usecases.resume_queue import ResumeQueue

    db, stored = await p.use(database), Queues(p.settings[QueueSettings].names)
    yield QueueControl(
        ListQueues(db, stored),
        PauseQueue(db, stored, AUDIT),
        ResumeQueue(db, stored, AUDIT),
        LimitQueue(db, stored, AUDIT),
    )


@asynccontextmanager
async def dead_letters(p: Process) -> AsyncGenerator[DeadLetterControl]:
    """Provide the use cases of dead letters."""
    from app.kernel.queue.dead_letters import DeadLetters
    from app.modules.platform.usecases.count_dead_letters import CountDeadLetters
    from app.modules.platform.usecases.get_dead_letter import GetDeadLetter
    from app.modules.platform.usecases.list_dead_letters import ListDeadLetters
    from app.modules.platform.usecases.purge_dead_letter import PurgeDeadLetter
    from app.modules.platform.usecases.purge_dead_letters import PurgeDeadLetters
    from app.modules.platform.usecases.retry_dead_letter import RetryDeadLetter
    from app.modules.platform.usecases.retry_dead_letters import RetryDeadLetters

    db, stored = await p.use(database), DeadLetters()
    yield DeadLetterControl(
        ListDeadLetters(db, stored),
        GetDeadLetter(db, stored),
        CountDeadLetters(db, stored),
        RetryDeadLetter(db, stored, AUDIT),
        RetryDeadLetters(db, stored, AUDIT),
        PurgeDeadLetter(db, stored, AUDIT),
        PurgeDeadLetters(db, stored, AUDIT),
    )


@asynccontextmanager
async def schedules(p: Process) -> AsyncGenerator[ScheduleControl]:
    """Provide the use cases of schedules."""
    from app.kernel.queue.schedules import Schedules
    from app.modules.platform.usecases.list_schedules import ListSchedules
    from app.modules.platform.usecases.pause_schedule import PauseSchedule
    from app.modules.platform.usecases.resume_schedule import ResumeSchedule
    from app.modules.platform.usecases.trigger_schedule import TriggerSchedule

    db, stored = await p.use(database), Schedules()
    yield ScheduleControl(
        ListSchedules(db, stored),
        TriggerSchedule(db, stored, AUDIT),
        PauseSchedule(db, stored, AUDIT),
        ResumeSchedule(db, stored, AUDIT),
    )


@asynccontextmanager
async def events(p: Process) -> AsyncGenerator[EventControl]:
    """Provide the use cases of events."""
    from app.kernel.queue.events import EventLog
    from app.modules.platform.usecases.count_replay import CountReplay
    from app.modules.platform.usecases.list_events import ListEvents
    from app.modules.platform.usecases.replay_events import ReplayEvents

    db, log = await p.use(database), EventLog()
    yield EventControl(ListEvents(db, log), CountReplay(db, log), ReplayEvents(db, log, AUDIT))


@asynccontextmanager
async def record_heartbeat(p: Process) -> AsyncGenerator["RecordHeartbeat"]:
    """Provide the use case of the heartbeat job."""
    from app.modules.platform.postgres import PostgresHeartbeats
    from app.modules.platform.usecases.record_heartbeat import RecordHeartbeat

    yield RecordHeartbeat(await p.use(database), PostgresHeartbeats())


@asynccontextmanager
async def errors(p: Process) -> AsyncGenerator[ErrorControl]:
    """Provide the use cases of captured errors."""
    from app.kernel.config import SentinelSettings
    from app.kernel.sentinel.postgres import PostgresErrors
    from app.modules.platform.usecases.get_error import GetError
    from app.modules.platform.usecases.list_errors import ListErrors
    from app.modules.platform.usecases.mute_error import MuteError
    from app.modules.platform.usecases.resolve_error import ResolveError

    db, stored = await p.use(database), PostgresErrors(p.settings[SentinelSettings].cooldown)
    yield ErrorControl(
        ListErrors(db, stored), GetError(db, stored), ResolveError(db, stored, AUDIT), MuteError(db, stored, AUDIT)
    )


@asynccontextmanager
async def recipients(p: Process) -> AsyncGenerator["NotifyRecipients"]:
    """Provide who is told of errors; the HTTP client is opened only for webhooks."""
    from app.kernel.config import SentinelSettings
    from app.modules.platform.recipients import NotifyRecipients, is_webhook

    urls = p.settings[SentinelSettings].notify_urls.get_secret_value()
    if not any(map(is_webhook, urls.split())):
        yield NotifyRecipients(urls)
        return
    from app.kernel.http.client import http_client

    yield NotifyRecipients(urls, await p.use(http_client))


@asynccontextmanager
async def try_recipients(p: Process) -> AsyncGenerator["TryRecipients"]:
    """Provide the use case of `errors notify-test`."""
    from app.modules.platform.usecases.try_recipients import TryRecipients

    yield TryRecipients(await p.use(recipients), p.settings.environment)


@asynccontextmanager
async def alerting(p: Process) -> AsyncGenerator[Alerting]:
    """Provide the use cases that tell people of errors."""
    from app.kernel.config import SentinelSettings
    from app.kernel.queue.postgres import PostgresQueue
    from app.kernel.sentinel.postgres import PostgresErrors
    from app.modules.platform.usecases.notify_errors import NotifyErrors
    from app.modules.platform.usecases.send_message import SendMessage

    told, errors = await p.use(recipients), PostgresErrors(p.settings[SentinelSettings].cooldown)
    notify = NotifyErrors(errors, told, PostgresQueue(), p.settings.environment)
    yield Alerting(notify, SendMessage(told))


@asynccontextmanager
async def prune(p: Process) -> AsyncGenerator["Prune"]:
    """Provide the use case of the hourly job."""
    from app.kernel.config import KeepSettings
    from app.kernel.upkeep import Upkeep
    from app.modules.platform.usecases.prune import Prune

    keep = p.settings[KeepSettings]
    upkeep = Upkeep(keep.finished_jobs, keep.dead_letters, keep.events, keep.audit, keep.errors)
    yield Prune(await p.use(database), upkeep)
