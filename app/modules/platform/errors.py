"""Captured errors."""

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from annotated_types import Interval

from app.kernel.actions import Database, Doc, Note, Transaction, change, read
from app.kernel.db import Queries, now
from app.kernel.errors import Invalid
from app.kernel.fields import IdOf, Option
from app.kernel.paging import Cursor, Limit, Page, after, mark, next_cursor
from app.kernel.sentinel import ErrorFilters, ErrorNotFound, StoredError
from app.kernel.sentinel.postgres import Errors
from app.modules.platform.domain.queue import check_zone

AT_ONCE = 1000
_DAY_S = 86400.0
_YEAR_S = 365 * _DAY_S
ErrorId = Annotated[UUID, Doc("Id of the group of errors."), IdOf("group of errors", ("kernel.errors",), "errors list")]
NextRelease = Annotated[bool, Doc("Reopen only for errors of a release that is newer than those that run now.")]
Seconds = Annotated[
    Annotated[float, Interval(ge=1, le=_YEAR_S)] | None,
    Doc("Duration. Default: a day."),
    Option("for", "duration"),
]
Until = Annotated[datetime | None, Doc("End, instead of a duration; within a year.", None)]


@dataclass(frozen=True, slots=True)
class ErrorRef:
    """A group of errors."""

    id: ErrorId


@dataclass(frozen=True, slots=True)
class ErrorsWanted(ErrorFilters):
    """Filters and page of a list of groups of errors."""

    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class ErrorToResolve:
    """A group of errors, and which errors reopen it."""

    id: ErrorId
    next_release: NextRelease = False


@dataclass(frozen=True, slots=True)
class ErrorToMute:
    """A group of errors, and how long to mute it."""

    id: ErrorId
    seconds: Seconds = None
    until: Until = None


@dataclass(frozen=True, slots=True)
class ErrorsChosen(ErrorFilters):
    """A selection of groups that are not resolved: those that match every filter, or `all` of them."""

    all: Annotated[bool, Doc("Select all groups that are not resolved.")] = False
    cursor: Cursor | None = None

    def check(self) -> None:
        """Raise Invalid unless there is either a filter or `all`."""
        check_zone(seen_after=self.seen_after, seen_before=self.seen_before)
        if self.all == any(self.filters().values()):
            raise Invalid("select groups of errors by state, kind, text, release or age, or select all")

    def filters(self) -> dict[str, str | None]:
        """Return the filters as texts, for the audit trail."""
        given = {item.name: getattr(self, item.name) for item in fields(ErrorFilters)}
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in given.items()}


@dataclass(frozen=True, slots=True)
class ErrorsToResolve(ErrorsChosen):
    """A selection of groups, and which errors reopen them."""

    next_release: NextRelease = False


@dataclass(frozen=True, slots=True)
class ErrorsToMute(ErrorsChosen):
    """A selection of groups, and how long to mute them."""

    seconds: Seconds = None
    until: Until = None


@dataclass(frozen=True, slots=True)
class ErrorsResolved:
    """Number of resolved groups."""

    resolved_count: int
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class ErrorsMuted:
    """Number of muted groups."""

    muted_count: int
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """A group of errors, with the context of its latest errors."""

    error: StoredError
    samples: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class CapturedErrors:
    """List, show, resolve and mute captured errors."""

    errors: Errors

    @read(
        "platform.list_errors",
        GET="/platform/v1/errors",
        permission="platform:errors:read",
        replica=True,
        command="errors list",
        empty="errors in logs are captured within seconds",
        examples=("", "--state open --kind job --json", "--text timeout --newer-than 1d"),
    )
    async def list(self, db: Database, wanted: ErrorsWanted) -> Page[StoredError]:
        """List groups of captured errors, newest first.

        States: open, resolved, muted, regressed (captured again after it was resolved).
        """
        check_zone(seen_after=wanted.seen_after, seen_before=wanted.seen_before)
        found = await self.errors.page(db, wanted, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

    @change(
        "platform.resolve_errors",
        POST="/platform/v1/errors/resolve",
        permission="platform:errors:write",
        command="errors resolve",
        count="platform.count_errors",
        message="resolved {resolved_count} groups of errors",
        examples=("--release 1.4.0 --next-release", "--older-than 7d --dry-run"),
    )
    async def resolve_some(self, tx: Transaction, chosen: ErrorsToResolve, note: Note) -> ErrorsResolved:
        """Resolve groups of errors, filtered by state, kind, text, release or age, or all of them.

        Each request resolves up to 1000 and returns `next_cursor` if more may follow. Safe to repeat.
        """
        chosen.check()
        done = await self.errors.resolve_some(
            tx, chosen, AT_ONCE, after(chosen.cursor), next_release=chosen.next_release
        )
        note.details |= {**chosen.filters(), "next_release": chosen.next_release, "resolved_count": done.changed}
        return ErrorsResolved(done.changed, done.last and mark(done.last))

    @change(
        "platform.mute_errors",
        POST="/platform/v1/errors/mute",
        permission="platform:errors:write",
        command="errors mute",
        count="platform.count_errors",
        message="muted {muted_count} groups of errors",
        examples=("--kind outage --for 2h", "--text timeout --until 2026-12-24T18:00:00Z"),
    )
    async def mute_some(self, tx: Transaction, chosen: ErrorsToMute, note: Note) -> ErrorsMuted:
        """Mute groups of errors that are not resolved, filtered by state, kind, text, release or age, or all of them.

        Each request mutes up to 1000 and returns `next_cursor` if more may follow. Safe to repeat.
        """
        chosen.check()
        until = await _end(tx, chosen.seconds, chosen.until)
        done = await self.errors.mute_some(tx, chosen, AT_ONCE, after(chosen.cursor), until)
        note.details |= {**chosen.filters(), "until": until.isoformat(), "muted_count": done.changed}
        return ErrorsMuted(done.changed, done.last and mark(done.last))

    @read("platform.count_errors")
    async def count(self, db: Database, chosen: ErrorsChosen) -> int:
        """Return the number of selected groups that are not resolved."""
        chosen.check()
        return await self.errors.count_unresolved(db, chosen)

    @read(
        "platform.get_error",
        GET="/platform/v1/errors/{id}",
        permission="platform:errors:read",
        raises=(ErrorNotFound,),
        command="errors show",
        examples=("0190a1b2-c3d4-7e5f-8607-18293a4b5c6d",),
    )
    async def get(self, db: Database, error: ErrorRef) -> ErrorDetails:
        """Show a group of errors: count, times, location, and the context of its latest errors."""
        found, samples = await self.errors.get(db, error.id)
        return ErrorDetails(found, samples)

    @change(
        "platform.resolve_error",
        POST="/platform/v1/errors/{id}/resolve",
        permission="platform:errors:write",
        raises=(ErrorNotFound,),
        command="errors resolve",
        message="{id} is resolved",
        examples=("0190a1b2-c3d4-7e5f-8607-18293a4b5c6d", "5c6d5e6f --next-release"),
    )
    async def resolve(self, tx: Transaction, error: ErrorToResolve, note: Note) -> None:
        """Resolve a group of errors. The next error reopens it as regressed. Safe to repeat.

        With `next_release`, errors of the releases that run now, and of older ones, do not reopen it.
        """
        note.details["next_release"] = error.next_release
        await self.errors.resolve(tx, error.id, next_release=error.next_release)

    @change(
        "platform.mute_error",
        POST="/platform/v1/errors/{id}/mute",
        permission="platform:errors:write",
        raises=(ErrorNotFound,),
        command="errors mute",
        message="{id} is muted",
        examples=("0190a1b2-c3d4-7e5f-8607-18293a4b5c6d --for 7d",),
    )
    async def mute(self, tx: Transaction, error: ErrorToMute, note: Note) -> None:
        """Mute the notifications of a group of errors for a time. Errors are still counted. Safe to repeat."""
        until = await _end(tx, error.seconds, error.until)
        note.details["until"] = until.isoformat()
        await self.errors.mute(tx, error.id, until)


async def _end(tx: Queries, seconds: float | None, until: datetime | None) -> datetime:
    """Return when muting ends. Raises Invalid unless that is within a year."""
    at = await now(tx)
    if until is None:
        return at + timedelta(seconds=_DAY_S if seconds is None else seconds)
    check_zone(until=until)
    problem = "is there with a duration; give one of them" if seconds is not None else ""
    if not at < until <= at + timedelta(seconds=_YEAR_S):
        problem = "must be in the future, and within a year"
    if problem:
        raise Invalid(f"until {problem}", (("until", problem),))
    return until
