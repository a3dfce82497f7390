"""Captured errors."""

from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from annotated_types import Interval

from app.kernel.actions import Database, Doc, Note, Transaction, change, read
from app.kernel.fields import IdOf, Option
from app.kernel.paging import Cursor, Limit, Page, after, next_cursor
from app.kernel.sentinel import ErrorNotFound, Kind, State, StoredError
from app.kernel.sentinel.postgres import Errors

_YEAR_S = 365 * 86400.0
ErrorId = Annotated[UUID, Doc("Id of the group of errors."), IdOf("group of errors", ("kernel.errors",), "errors list")]


@dataclass(frozen=True, slots=True)
class ErrorRef:
    """A group of errors."""

    id: ErrorId


@dataclass(frozen=True, slots=True)
class ErrorsWanted:
    """Filters and page of a list of groups of errors."""

    state: Annotated[State | None, Doc("Filter by state.")] = None
    kind: Annotated[Kind | None, Doc("Filter by kind.")] = None
    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class ErrorToMute:
    """A group of errors, and how long to mute it."""

    id: ErrorId
    seconds: Annotated[float, Interval(ge=1, le=_YEAR_S), Doc("Duration."), Option("for", "duration")] = 86400.0


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
        examples=("", "--state open --kind job --json"),
    )
    async def list(self, db: Database, wanted: ErrorsWanted) -> Page[StoredError]:
        """List groups of captured errors, most recently seen first."""
        found = await self.errors.page(db, wanted.state, wanted.kind, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

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
        examples=("0190a1b2-c3d4-7e5f-8607-18293a4b5c6d",),
    )
    async def resolve(self, tx: Transaction, error: ErrorRef) -> None:
        """Resolve a group of errors. The next error reopens it as regressed. Safe to repeat."""
        await self.errors.resolve(tx, error.id)

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
        note.details["seconds"] = int(error.seconds)
        await self.errors.mute(tx, error.id, error.seconds)
