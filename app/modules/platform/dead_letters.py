"""Dead letters: jobs that failed permanently."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from uuid import UUID

from annotated_types import Len

from app.kernel.actions import Database, Doc, Note, Transaction, change, read
from app.kernel.errors import Invalid
from app.kernel.fields import IdOf, Option, Pattern
from app.kernel.identifiers import uuid7
from app.kernel.paging import Cursor, Limit, Page, after, mark, mark_all, marked_all, next_cursor
from app.kernel.product import NAME
from app.kernel.queue import JobExists
from app.kernel.queue.dead_letters import (
    Cause,
    DeadLetterAdmin,
    DeadLetterDetails,
    DeadLetterFilters,
    ListedDeadLetter,
)
from app.kernel.queue.purges import Purge, PurgeAdmin
from app.modules.platform.domain.queue import DeadLetterNotFound, PurgeNotFound, check_zone
from app.modules.platform.jobs import JobChanged, OfQueue, OfTask

AT_ONCE = 1000
OfCause = Annotated[Annotated[str, Len(1, 64)] | None, Doc("Filter by cause, as listed by the causes of dead letters.")]
DiedBefore = Annotated[datetime | None, Doc("Filter by age: dead before this time."), Option("older-than", "age")]
_PURGES = "(SELECT DISTINCT purge_id AS id FROM kernel.purged_dead_letters) p"
_ChunkCursor = Annotated[
    str,
    Pattern("^([A-Za-z0-9_-]{21}[AQgw]|[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048])$"),
    Doc("`next_cursor` of the previous request.", "AaIDBFG5cS21LP1A3wtD4w"),
]


@dataclass(frozen=True, slots=True)
class DeadLettersWanted:
    """Filters and page of a list of dead letters."""

    queue: OfQueue = None
    task: OfTask = None
    cause: OfCause = None
    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class CausesWanted:
    """Filters and page of a list of causes."""

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
class Selection:
    """A selection of dead letters: those that match every filter, or `all` of them."""

    queue: OfQueue = None
    task: OfTask = None
    cause: OfCause = None
    died_before: DiedBefore = None
    all: Annotated[bool, Doc("Select all dead letters.")] = False

    def filters(self) -> DeadLetterFilters:
        """Return the filters. Raises Invalid unless there is either a filter or `all`."""
        check_zone(died_before=self.died_before)
        filters = DeadLetterFilters(self.queue, self.task, self.cause, self.died_before)
        if self.all != (filters == DeadLetterFilters()):
            raise Invalid("select dead letters by queue, task, cause or age, or select all")
        return filters


@dataclass(frozen=True, slots=True)
class DeadLettersChosen(Selection):
    """A selection of dead letters, and where to go on."""

    cursor: _ChunkCursor | None = None

    def details(self) -> dict[str, str | None]:
        """Return the filters for the audit trail."""
        return audited(self.filters())


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
    """Result of a purge. `purge_id` undoes it; it is that of all requests of the purge."""

    deleted_count: int
    next_cursor: str | None
    purge_id: UUID


@dataclass(frozen=True, slots=True)
class PurgesWanted:
    """Page of a list of purges."""

    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class PurgeToUndo:
    """A purge."""

    id: Annotated[
        UUID,
        Doc("Id of the purge, or of a dead letter that was purged."),
        IdOf("purge", (_PURGES, "kernel.purged_dead_letters"), "dead-letters purges"),
    ]
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class Restored:
    """Result of undoing a purge. Of `taken_count` dead letters, unfinished jobs have the unique keys meanwhile."""

    restored_count: int
    taken_count: int
    next_cursor: str | None

    def __str__(self) -> str:
        taken = f"; unfinished jobs have the unique keys of {self.taken_count}, which cannot be retried until then"
        return f"restored {self.restored_count} dead letters{taken if self.taken_count else ''}"


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """List, show, retry and purge dead letters."""

    admin: DeadLetterAdmin
    purges: PurgeAdmin

    @read(
        "platform.list_dead_letter_causes",
        GET="/platform/v1/dead-letter-causes",
        permission="platform:dead_letters:read",
        replica=True,
        command="dead-letters causes",
        empty="jobs that fail permanently are grouped here by cause",
        examples=("", "--task reports.render --json"),
    )
    async def causes(self, db: Database, wanted: CausesWanted) -> Page[Cause]:
        """List the causes of dead letters with their numbers, those of the newest jobs first.

        They are those of the newest 20,000 dead letters. A cause is a task and the fingerprint of its last error: that
        of the group of captured errors, or, without an exception, the text without numbers, ids and quoted parts.
        """
        filters = DeadLetterFilters(wanted.queue, wanted.task)
        found = await self.admin.causes(db, filters, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

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
        filters = DeadLetterFilters(wanted.queue, wanted.task, wanted.cause)
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
        """Retry dead letters, filtered by queue, task, cause or age, or all of them.

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
        confirm="Delete {count} dead letters? They can be restored for a day.",
        message=f"purged {{deleted_count}} dead letters; within a day: {NAME} dead-letters undo-purge {{purge_id}}",
        examples=("--older-than 7d --yes", "--queue reports --older-than 12h"),
    )
    async def purge_some(self, tx: Transaction, chosen: DeadLettersChosen, note: Note) -> Purged:
        """Delete dead letters, filtered by queue, task, cause or age, or all of them. It can be undone for a day.

        Each request deletes up to 1000 and returns `next_cursor` if more may follow. Until the day has passed, the
        arguments of the jobs are still stored. Safe to repeat.
        """
        last, purge_id = _purging(chosen.cursor)
        done = await self.purges.purge_some(tx, chosen.filters(), AT_ONCE, last, purge_id)
        note.details |= {**chosen.details(), "deleted_count": done.changed, "purge_id": str(purge_id)}
        return Purged(done.changed, done.last and mark_all(done.last, purge_id), purge_id)

    @read(
        "platform.list_purges",
        GET="/platform/v1/dead-letter-purges",
        permission="platform:dead_letters:read",
        command="dead-letters purges",
        empty="dead letters that were purged within a day are listed here",
        examples=("",),
    )
    async def list_purges(self, db: Database, wanted: PurgesWanted) -> Page[Purge]:
        """List the purges of the last day that can be undone, newest first."""
        found = await self.purges.page(db, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

    @change(
        "platform.undo_purge",
        POST="/platform/v1/dead-letter-purges/{id}/undo",
        permission="platform:dead_letters:write",
        raises=(PurgeNotFound,),
        command="dead-letters undo-purge",
        count="platform.count_purged",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def undo_purge(self, tx: Transaction, purge: PurgeToUndo, note: Note) -> Restored:
        """Restore the dead letters of a purge, within a day after it.

        Each request restores up to 1000 and returns `next_cursor` if more may follow. The id of a dead letter restores
        that one alone.
        """
        done, taken = await self.purges.restore(tx, purge.id, AT_ONCE, after(purge.cursor))
        if not done.seen and purge.cursor is None:
            raise PurgeNotFound(f"there is no purge {purge.id} of the last day, or it was undone")
        note.details |= {"restored_count": done.changed, "taken_count": taken}
        return Restored(done.changed, taken, done.last and mark(done.last))

    @read(
        "platform.get_dead_letter",
        GET="/platform/v1/dead-letters/{id}",
        permission="platform:dead_letters:read",
        raises=(DeadLetterNotFound,),
        command="dead-letters show",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def get(self, db: Database, letter: DeadLetterRef) -> DeadLetterDetails:
        """Show a dead letter with its errors. The values of its payload are redacted."""
        found = await self.admin.get(db, letter.id)
        if found is None:
            raise DeadLetterNotFound(f"there is no dead letter {letter.id}")
        return found

    @change(
        "platform.reveal_dead_letter",
        POST="/platform/v1/dead-letters/{id}/reveal",
        permission="platform:dead_letters:reveal",
        raises=(DeadLetterNotFound,),
        command="dead-letters reveal",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def reveal(self, tx: Transaction, letter: DeadLetterRef) -> DeadLetterDetails:
        """Show a dead letter with its payload, which may contain personal data. It is recorded who has asked."""
        found = await self.admin.get(tx, letter.id, reveal=True)
        if found is None:
            raise DeadLetterNotFound(f"there is no dead letter {letter.id}")
        return found

    @change(
        "platform.purge_dead_letter",
        DELETE="/platform/v1/dead-letters/{id}",
        permission="platform:dead_letters:write",
        raises=(DeadLetterNotFound,),
        command="dead-letters purge",
        confirm="Delete the dead letter {id}? It can be restored for a day.",
        message=f"purged 1 dead letter; within a day: {NAME} dead-letters undo-purge {{id}}",
        examples=("0193505f-1c00-7000-8000-000000000001",),
    )
    async def purge(self, tx: Transaction, letter: DeadLetterRef) -> None:
        """Delete a dead letter. It can be restored for a day."""
        if not (await self.purges.purge(tx, letter.id, uuid7())).changed:
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

    @read("platform.count_purged")
    async def count_purged(self, db: Database, purge: PurgeToUndo) -> int:
        """Return the number of dead letters of a purge."""
        return await self.purges.count(db, purge.id)


def audited(filters: DeadLetterFilters) -> dict[str, str | None]:
    """Return filters for the audit trail."""
    return {**filters.given(), "died_before": filters.died_before and filters.died_before.isoformat()}


def _purging(cursor: str | None) -> tuple[UUID | None, UUID]:
    """Return where a purge goes on, and its id. Raises Invalid for a malformed cursor."""
    if cursor is None:
        return None, uuid7()
    last, *purge = marked_all(cursor)
    return last, purge[0] if purge else uuid7()  # a cursor of the release before has no purge
