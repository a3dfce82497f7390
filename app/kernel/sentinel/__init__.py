"""Error tracking: captured errors are grouped by origin, counted, stored in PostgreSQL, and notified once.

Log records with an exception or of level error are captured. Modules declare nothing.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from annotated_types import Len

from app.kernel.actions.columns import Column, Columns
from app.kernel.errors import NotFound
from app.kernel.fields import Doc, Option
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
class ErrorFilters:
    """Filters of groups of errors, combined with AND."""

    state: Annotated[State | None, Doc("Filter by state.")] = None
    kind: Annotated[Kind | None, Doc("Filter by kind.")] = None
    q: Annotated[
        Annotated[str, Len(1, 200)] | None,
        Doc("Filter by a part of the message, of the type or of where it was raised."),
        Option("text"),
    ] = None
    release: Annotated[
        Annotated[str, Len(1, 100)] | None, Doc("Filter by release: the first or the last one that captured it.")
    ] = None
    seen_after: Annotated[
        datetime | None, Doc("Filter by age: last seen at this time or later."), Option("newer-than", "age")
    ] = None
    seen_before: Annotated[
        datetime | None, Doc("Filter by age: last seen before this time."), Option("older-than", "age")
    ] = None


@dataclass(frozen=True, slots=True)
class StoredError:
    """A group of captured errors.

    `hourly` has the counts of the last 24 hours, oldest first; the last one is that of the current hour. A group with
    `resolved_releases` is not reopened by errors of these releases and of older ones.
    """

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
    regressed_at: datetime | None
    regressed_release: str | None
    resolved_releases: list[str] | None
    hourly: list[int]

    columns: ClassVar[Columns] = (
        Column("id"),
        Column("state", is_state=True),
        Column("what", "title"),
        Column("count"),
        Column("last seen", "last_seen_at"),
        Column("last day", "hourly", extra=True, is_series=True),
        Column("kind", extra=True),
        Column("first in", "first_release", extra=True),
        Column("last in", "last_release", extra=True),
        Column("regressed", lambda error: (error.regressed_at, error.regressed_release), extra=True),
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
