"""Error tracking: captured errors are grouped by origin, counted, stored in PostgreSQL, and notified once.

Log records with an exception or of level error are captured. Modules declare nothing.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.errors import NotFound
from app.kernel.product import NAME
from app.kernel.queue import Task

Kind = Literal["request", "job", "schedule", "service", "outage"]
State = Literal["open", "resolved", "muted", "regressed"]

NOTIFY = Task[None]("platform.notify_errors")
"""Notifies people of due groups; enqueued when there is one."""


@dataclass(slots=True)
class Group:
    """Errors of one type from the same frames of our code.

    `samples` has the context of one: operation, actor, request or job, its last log lines, stack, host. The last five
    samples are stored.
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
    """The captured error does not exist."""

    code = "ERROR_NOT_FOUND"
    hint = f"{NAME} errors list"
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
    """A group to notify people of, with the number of errors since the last notification."""

    id: UUID
    kind: str
    title: str
    culprit: str
    state: State
    count: int
    since: int
    processes: list[str]
    first_seen_at: datetime
