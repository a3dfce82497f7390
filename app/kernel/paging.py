"""Cursor pagination: `?limit=` (1 to 100, default 20) and `&cursor=`, the `next_cursor` of the previous page."""

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Generic, Protocol, TypeVar
from uuid import UUID

from annotated_types import Interval

from app.kernel.errors import Invalid
from app.kernel.fields import Doc, Pattern

T = TypeVar("T")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
Limit = Annotated[int, Interval(ge=1, le=100), Doc("Maximum number of rows.")]
_CURSOR = "AaIDBFG5cS21LP1A3wtD4w"
Cursor = Annotated[str, Pattern("^[A-Za-z0-9_-]{21}[AQgw]$"), Doc("`next_cursor` of the previous page.", _CURSOR)]
"""An id: 16 bytes in base64url."""
NameCursor = Annotated[
    str, Pattern("^[A-Za-z0-9_-]{2,1024}$"), Doc("`next_cursor` of the previous page.", "ZGVmYXVsdA")
]
"""A name in base64url."""
TimeCursor = Annotated[
    str, Pattern("^[A-Za-z0-9_-]{32}$"), Doc("`next_cursor` of the previous page.", f"{_CURSOR}AGYNqKUYgA")
]
"""An id and a time: 24 bytes in base64url."""
WorkCursor = Annotated[
    str,
    Pattern("^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$"),
    Doc("`next_cursor` of a response.", f"{_CURSOR}AGYNqKUYgAAAZg2opRiAA"),
]
"""An id and two times: 32 bytes in base64url."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a list; `next_cursor` is null on the last page."""

    items: list[T]
    next_cursor: Annotated[str | None, Doc("Cursor of the next page; null on the last one.", _CURSOR)] = None


@dataclass(frozen=True, slots=True)
class PageByName:
    """A page of a list in the order of names."""

    limit: Limit = 20
    cursor: NameCursor | None = None


class HasId(Protocol):
    """A row of a list."""

    @property
    def id(self) -> UUID:
        """The id, which orders the list."""
        ...


def after(cursor: str | None) -> UUID | None:
    """Return the id that a page starts after. Raises Invalid for a malformed cursor."""
    return None if cursor is None else marked(cursor, 0)[0]


def next_cursor(items: Sequence[HasId], limit: int) -> str | None:
    """Return the cursor of the next page; None if this page is not full."""
    return None if len(items) < limit else mark(items[-1].id)


def page_of(
    rows: Iterable[T], key: Callable[[T], str], limit: int, cursor: str | None, *, is_descending: bool = False
) -> Page[T]:
    """Return a page of a list that is bounded by the code or the deployment, in the order of unique keys.

    Raises Invalid for a malformed cursor.
    """
    left = sorted(rows, key=key, reverse=is_descending)
    if cursor is not None:
        last = _text(cursor)
        left = [row for row in left if (key(row) < last if is_descending else key(row) > last)]
    more = _encoded(key(left[limit - 1]).encode()) if len(left) > limit else None
    return Page(left[:limit], more)


def mark(last: UUID, *moments: datetime) -> str:
    """Return a cursor of an id and times to the microsecond."""
    numbers = [(moment - _EPOCH) // _MICROSECOND for moment in moments]
    position = last.bytes + b"".join(number.to_bytes(8, "big", signed=True) for number in numbers)
    return _encoded(position)


def mark_all(*ids: UUID) -> str:
    """Return a cursor of several ids."""
    return base64.urlsafe_b64encode(b"".join(each.bytes for each in ids)).rstrip(b"=").decode()


def marked_all(cursor: str) -> list[UUID]:
    """Return the ids of a cursor. Raises Invalid for a malformed cursor."""
    found = base64.urlsafe_b64decode(cursor + "==")
    if not found or len(found) % 16:
        raise Invalid("the cursor is invalid", (("cursor", "is invalid"),))
    return [UUID(bytes=found[at : at + 16]) for at in range(0, len(found), 16)]


def marked(cursor: str, moments: int) -> tuple[UUID, list[datetime]]:
    """Return the id and the times of a cursor. Raises Invalid for a malformed cursor."""
    try:
        found = base64.urlsafe_b64decode(cursor + "==")
        numbers = [int.from_bytes(found[at : at + 8], "big", signed=True) for at in range(16, len(found), 8)]
        if len(found) != 16 + 8 * moments:
            raise ValueError
        return UUID(bytes=found[:16]), [_EPOCH + number * _MICROSECOND for number in numbers]
    except (ValueError, OverflowError):
        raise Invalid("the cursor is invalid", (("cursor", "is invalid"),)) from None


def _encoded(position: bytes) -> str:
    return base64.urlsafe_b64encode(position).rstrip(b"=").decode()


def _text(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except ValueError:
        raise Invalid("the cursor is invalid", (("cursor", "is invalid"),)) from None
