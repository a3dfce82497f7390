"""Dead letters: jobs that failed permanently."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

from app.kernel.actions import Database, Doc, Note, Transaction, change, read
from app.kernel.errors import Invalid
from app.kernel.fields import IdOf, Option
from app.kernel.paging import Cursor, Limit, Page, after, mark, next_cursor
from app.kernel.queue import JobExists
from app.kernel.queue.dead_letters import DeadLetterAdmin, DeadLetterDetails, DeadLetterFilters, ListedDeadLetter
from app.modules.platform.domain.queue import DeadLetterNotFound, check_zone
from app.modules.platform.jobs import JobChanged, OfQueue, OfTask

AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class DeadLettersWanted:
    """Filters and page of a list of dead letters."""

    queue: OfQueue = None
    task: OfTask = None
    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class DeadLetterRef:
    """A dead letter."""

    id: Annotated[
        UUID, Doc("Id of the dead letter."), IdOf("dead letter", ("kernel.dead_letters",), "dead-letters list")
    ]


@dataclass(frozen=True, slots=True)
class DeadLettersChosen:
    """A selection of dead letters: those that match every filter, or `all` of them."""

    queue: OfQueue = None
    task: OfTask = None
    died_before: Annotated[
        datetime | None, Doc("Filter by age: dead before this time."), Option("older-than", "age")
    ] = None
    all: Annotated[bool, Doc("Select all dead letters.")] = False
    cursor: Cursor | None = None

    def filters(self) -> DeadLetterFilters:
        """Return the filters. Raises Invalid unless there is either a filter or `all`."""
        check_zone(died_before=self.died_before)
        filters = DeadLetterFilters(self.queue, self.task, self.died_before)
        if self.all != (filters == DeadLetterFilters()):
            raise Invalid("select dead letters by queue, task or age, or select all")
        return filters

    def details(self) -> dict[str, str | None]:
        """Return the filters for the audit trail."""
        died_before = None if self.died_before is None else self.died_before.isoformat()
        return {"queue": self.queue, "task": self.task, "died_before": died_before}


@dataclass(frozen=True, slots=True)
class Retried:
    """Result of a retry; `conflict_count` dead letters stay because unfinished jobs have their unique keys."""

    retried_count: int
    conflict_count: int
    next_cursor: str | None

    def __str__(self) -> str:
        left = f"; {self.conflict_count} remain because unfinished jobs have their unique keys"
        return f"retried {self.retried_count} dead letters{left if self.conflict_count else ''}"


@dataclass(frozen=True, slots=True)
class Purged:
    """Result of a purge."""

    deleted_count: int
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """List, show, retry and purge dead letters."""

    admin: DeadLetterAdmin

    @read(
        "platform.list_dead_letters",
        GET="/platform/v1/dead-letters",
        permission="platform:dead_letters:read",
        replica=True,
        command="dead-letters list",
        empty="jobs that fail permanently are listed here",
        examples=("", "--queue default --json"),
    )
    async def list(self, db: Database, wanted: DeadLettersWanted) -> Page[ListedDeadLetter]:
        """List dead letters and their last errors, newest first."""
        filters = DeadLetterFilters(wanted.queue, wanted.task)
        found = await self.admin.page(db, filters, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

    @change(
        "platform.retry_dead_letters",
        POST="/platform/v1/dead-letters/retry",
        permission="platform:dead_letters:write",
        command="dead-letters retry",
        count="platform.count_dead_letters",
        examples=("--task reports.render", "--all --dry-run"),
    )
    async def retry_some(self, tx: Transaction, chosen: DeadLettersChosen, note: Note) -> Retried:
        """Retry dead letters, filtered by queue, task or age, or all of them.

        Each request retries up to 1000 and returns `next_cursor` if more may follow. A dead letter stays if an
        unfinished job has its unique key. Safe to repeat.
        """
        done = await self.admin.revive_some(tx, chosen.filters(), AT_ONCE, after(chosen.cursor))
        note.details |= {**chosen.details(), "retried_count": done.changed}
        return Retried(done.changed, done.seen - done.changed, done.last and mark(done.last))

    @change(
        "platform.purge_dead_letters",
        POST="/platform/v1/dead-letters/purge",
        permission="platform:dead_letters:write",
        command="dead-letters purge",
        count="platform.count_dead_letters",
        confirm="Permanently delete {count} dead letters?",
        message="purged {deleted_count} dead letters",
        examples=("--older-than 7d --yes", "--queue reports --older-than 12h"),
    )
    async def purge_some(self, tx: Transaction, chosen: DeadLettersChosen, note: Note) -> Purged:
        """Permanently delete dead letters, filtered by queue, task or age, or all of them.

        Each request deletes up to 1000 and returns `next_cursor` if more may follow. Safe to repeat.
        """
        done = await self.admin.purge_some(tx, chosen.filters(), AT_ONCE, after(chosen.cursor))
        note.details |= {**chosen.details(), "deleted_count": done.changed}
        return Purged(done.changed, done.last and mark(done.last))

    @read(
        "platform.get_dead_letter",
        GET="/platform/v1/dead-letters/{id}",
        permission="platform:dead_letters:read",
        raises=(DeadLetterNotFound,),
        command="dead-letters show",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def get(self, db: Database, letter: DeadLetterRef) -> DeadLetterDetails:
        """Show a dead letter with its payload and errors. Payloads may contain personal data."""
        found = await self.admin.get(db, letter.id)
        if found is None:
            raise DeadLetterNotFound(f"there is no dead letter {letter.id}")
        return found

    @change(
        "platform.purge_dead_letter",
        DELETE="/platform/v1/dead-letters/{id}",
        permission="platform:dead_letters:write",
        raises=(DeadLetterNotFound,),
        command="dead-letters purge",
        confirm="Permanently delete the dead letter {id}?",
        message="purged 1 dead letter",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def purge(self, tx: Transaction, letter: DeadLetterRef) -> None:
        """Permanently delete a dead letter."""
        if not (await self.admin.purge(tx, letter.id)).changed:
            raise DeadLetterNotFound(f"there is no dead letter {letter.id}")

    @change(
        "platform.retry_dead_letter",
        POST="/platform/v1/dead-letters/{id}/retry",
        permission="platform:dead_letters:write",
        raises=(DeadLetterNotFound, JobExists),
        command="dead-letters retry",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def retry(self, tx: Transaction, letter: DeadLetterRef) -> JobChanged:
        """Retry a dead letter: it becomes a job with all attempts left, the last one of its group."""
        done = await self.admin.revive(tx, letter.id)
        if not done.seen:
            raise DeadLetterNotFound(f"there is no dead letter {letter.id}")
        if not done.changed:
            raise JobExists("an unfinished job has its unique key; cancel that job or purge this dead letter")
        return JobChanged(letter.id, "ready")

    @read("platform.count_dead_letters")
    async def count(self, db: Database, chosen: DeadLettersChosen) -> int:
        """Return the number of selected dead letters."""
        return await self.admin.count(db, chosen.filters())
