"""Errors, captured: grouped by where they come from, counted, kept in PostgreSQL, and people notified once.

What is logged with an exception, or as an error, is captured; nothing has to be called. Modules declare nothing.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.errors import NotFound
from app.kernel.queue import Task

Kind = Literal["request", "job", "schedule", "service", "outage"]
State = Literal["open", "resolved", "muted", "regressed"]

NOTIFY = Task[None]("platform.notify_errors")
"""Notifies people of the groups that are due; enqueued when there is one."""


@dataclass(slots=True)
class Group:
    """Errors that are alike: of one type, out of the same frames of ours.

    `samples` holds the context of one: operation, actor, request or job, the last log lines of it, stack, host. With
    those of the times before, the last five are stored.
    """

    fingerprint: str
    kind: Kind
    type: str
    title: str
    culprit: str
    count: int
    first_seen_at: datetime
    last_seen_at: datetime
    samples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class ErrorNotFound(NotFound):
    """There is no such captured error."""

    code = "ERROR_NOT_FOUND"
    title = "There is no such captured error"


@dataclass(frozen=True, slots=True)
class StoredError:
    """A group of captured errors."""

    id: UUID
    kind: Kind
    type: str
    title: str
    culprit: str
    state: State
    count: int
    processes: list[str]
    first_seen_at: datetime
    last_seen_at: datetime
    first_release: str
    last_release: str
    muted_until: datetime | None
    notified_at: datetime | None

    columns: ClassVar[Columns] = (
        Column("id"),
        Column("state", is_state=True),
        Column("kind", extra=True),
        Column("count", extra=True),
        Column("last seen", "last_seen_at"),
        Column("what", "title"),
    )


@dataclass(frozen=True, slots=True)
class DueGroup:
    """A group that people are to be notified of, with how many errors there were since the last time."""

    id: UUID
    kind: str
    title: str
    culprit: str
    state: State
    count: int
    since: int
    processes: list[str]
    first_seen_at: datetime
