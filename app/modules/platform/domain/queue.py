"""Refusals of the administration of the queue."""

from datetime import datetime

from app.kernel.errors import Conflict, Invalid, NotFound
from app.kernel.product import NAME


class JobNotFound(NotFound):
    code = "JOB_NOT_FOUND"
    title = "There is no such job"
    hint = f"{NAME} jobs list"


class JobEnded(Conflict):
    code = "JOB_ENDED"
    title = "The job has ended"
    hint = f"{NAME} jobs list --state done"


class JobUnfinished(Conflict):
    code = "JOB_UNFINISHED"
    title = "The job has not ended"
    hint = f"{NAME} jobs cancel ID"


class JobRunning(Conflict):
    code = "JOB_RUNNING"
    title = "The job is running"
    hint = f"{NAME} jobs list --state leased"


class JobWaiting(Conflict):
    code = "JOB_WAITING"
    title = "The job waits for its turn"


class DeadLetterNotFound(NotFound):
    code = "DEAD_LETTER_NOT_FOUND"
    title = "There is no such dead letter"
    hint = f"{NAME} dead-letters list"


class PurgeNotFound(NotFound):
    code = "PURGE_NOT_FOUND"
    title = "There is no such purge of the last day"
    hint = f"{NAME} dead-letters purges"


class CanaryNotFound(NotFound):
    code = "CANARY_NOT_FOUND"
    title = "There is no such canary"
    hint = f"{NAME} dead-letters canary list"


class CanaryRunning(Conflict):
    code = "CANARY_RUNNING"
    title = "A canary with these filters is running"
    hint = f"{NAME} dead-letters canary list"


class ScheduleNotFound(NotFound):
    code = "SCHEDULE_NOT_FOUND"
    title = "There is no such schedule"
    hint = f"{NAME} schedules list"


class ScheduleBusy(Conflict):
    code = "SCHEDULE_BUSY"
    title = "The last job of the schedule has not ended, and its jobs must not overlap"
    hint = f"{NAME} jobs list --state leased"


class SubscriberNotFound(NotFound):
    code = "SUBSCRIBER_NOT_FOUND"
    title = "There is no such subscriber"


def check_zone(**moments: datetime | None) -> None:
    """Raise Invalid for a moment without a time zone."""
    wrong = [name for name, moment in moments.items() if moment is not None and moment.tzinfo is None]
    if wrong:
        message = "must have a time zone, such as 2026-11-22T10:00:00Z"
        raise Invalid(f"{wrong[0]} {message}", tuple((name, message) for name in wrong))


class TraceNotFound(NotFound):
    code = "TRACE_NOT_FOUND"
    title = "Nothing is stored with this id"
