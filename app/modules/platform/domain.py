"""What operators name, and why they are refused; what platform tells people, and how."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Protocol
from uuid import UUID

from annotated_types import Len

from app.kernel.errors import Conflict, Invalid, NotFound
from app.kernel.queue import Task
from app.kernel.sentinel import Told

Name = Annotated[str, Len(1, 128)]
ONE_BY_ONE = 3
_SHOWN = 20


class JobNotFound(NotFound):
    """There is no such job."""

    code = "JOB_NOT_FOUND"


class JobEnded(Conflict):
    """The job has ended."""

    code = "JOB_ENDED"


class JobRunning(Conflict):
    """The job is running."""

    code = "JOB_RUNNING"


class JobWaiting(Conflict):
    """The job waits for its turn."""

    code = "JOB_WAITING"


class DeadLetterNotFound(NotFound):
    """There is no such dead letter."""

    code = "DEAD_LETTER_NOT_FOUND"


class ScheduleNotFound(NotFound):
    """There is no such schedule."""

    code = "SCHEDULE_NOT_FOUND"


class ScheduleBusy(Conflict):
    """The last job of the schedule has not ended, and its jobs must not overlap."""

    code = "SCHEDULE_BUSY"


class SubscriberNotFound(NotFound):
    """There is no such subscriber."""

    code = "SUBSCRIBER_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class JobRef:
    """A job."""

    id: UUID


@dataclass(frozen=True, slots=True)
class DeadLetterRef:
    """A dead letter."""

    id: UUID


@dataclass(frozen=True, slots=True)
class QueueRef:
    """A queue."""

    name: Name


@dataclass(frozen=True, slots=True)
class ScheduleRef:
    """A schedule."""

    name: Name


def check_zone(**moments: datetime | None) -> None:
    """Raise Invalid for a moment without a time zone."""
    wrong = [name for name, moment in moments.items() if moment is not None and moment.tzinfo is None]
    if wrong:
        message = "must have a time zone, such as 2026-11-22T10:00:00Z"
        raise Invalid(f"{wrong[0]} {message}", tuple((name, message) for name in wrong))


@dataclass(frozen=True, slots=True)
class Message:
    """What one recipient is told. The recipient is named by a fingerprint: its address is a secret."""

    recipient: str
    title: str
    body: str


SEND_MESSAGE = Task("platform.send_message", Message, timeout_s=60)


class Recipients(Protocol):
    """Who is told of errors."""

    def names(self) -> list[str]:
        """Return a fingerprint for each."""
        ...

    async def send(self, message: Message) -> None:
        """Send it. Raises NotFound when there is no such recipient any more, Unavailable when it was not accepted."""
        ...


def texts(told: list[Told], environment: str) -> list[tuple[str, str]]:
    """Return titles and bodies: one for each group, or a single digest when many opened at once."""
    if len(told) <= ONE_BY_ONE:
        return [(f"[{environment}] {_opening(group)}", _about(group)) for group in told]
    lines = [f"- {_opening(group)} ({group.since} times): app errors show {group.id}" for group in told[:_SHOWN]]
    if len(told) > _SHOWN:
        lines.append(f"- and {len(told) - _SHOWN} more: app errors list")
    return [(f"[{environment}] {len(told)} groups of errors", "\n".join(lines))]


def _opening(group: Told) -> str:
    word = "regressed: " if group.state == "regressed" else ""
    return f"{word}{group.title}"[:200]


def _about(group: Told) -> str:
    since = f"{group.since} times since the last message, {group.count} in all"
    return "\n".join(
        [
            f"{since}, first at {group.first_seen_at:%Y-%m-%d %H:%M:%S}Z",
            f"where: {group.culprit}",
            f"processes: {', '.join(group.processes)}",
            f"more: app errors show {group.id}",
        ]
    )
