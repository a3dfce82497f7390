"""Errors, captured: grouped by where they come from, counted, kept in PostgreSQL, and people notified once.

What is logged with an exception, or as an error, is captured; nothing has to be called. Modules declare nothing.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal, Protocol
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction
from app.kernel.errors import NotFound
from app.kernel.queue import Task

Kind = Literal["request", "job", "schedule", "service", "outage"]
State = Literal["open", "resolved", "muted", "regressed"]

NOTIFY = Task[None]("platform.notify_errors")
"""Tells people of the groups that are due; enqueued when there is one."""


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


class Errors(Protocol):
    """Captured errors, stored. Each method raises Unavailable."""

    async def take_due(self, tx: Transaction) -> list[DueGroup]:
        """Return the groups that people are to be notified of, most frequent first, and mark them as notified."""
        ...

    async def page(
        self, db: Queries, state: str | None, kind: str | None, limit: int, after: UUID | None
    ) -> list[StoredError]:
        """Return groups, newest first, those after one."""
        ...

    async def get(self, db: Queries, error_id: UUID) -> tuple[StoredError, list[dict[str, Any]]]:
        """Return a group and its samples, newest first. Raises ErrorNotFound."""
        ...

    async def resolve(self, db: Queries, error_id: UUID) -> None:
        """Close a group; it regresses when there is one more. Raises ErrorNotFound. Safe to repeat."""
        ...

    async def mute(self, db: Queries, error_id: UUID, seconds: float) -> None:
        """Tell nobody of a group for a while. Raises ErrorNotFound. Safe to repeat."""
        ...
