"""Lists in pages: `?limit=` (1 to 100, default 20) and `&cursor=`; the answer says where the next page starts."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Protocol, TypeVar
from uuid import UUID

from annotated_types import Interval

from app.kernel.errors import Invalid

T = TypeVar("T")
Limit = Annotated[int, Interval(ge=1, le=100)]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list, and where the next one starts; nowhere when this is the last."""

    items: list[T]
    next_cursor: str | None = None


class HasId(Protocol):
    """What can be listed."""

    @property
    def id(self) -> UUID:
        """Its identifier, by which the list is ordered."""
        ...


def after(cursor: str | None) -> UUID | None:
    """Return where a page starts. Raises Invalid for a cursor that was not ours."""
    if cursor is None:
        return None
    try:
        return UUID(bytes=base64.urlsafe_b64decode(cursor + "=="))
    except (ValueError, binascii.Error):
        raise Invalid("the cursor is not one of ours", (("cursor", "not one of ours"),)) from None


def next_cursor(items: Sequence[HasId], limit: int) -> str | None:
    """Return the cursor of the next page; None when this one is not full."""
    if len(items) < limit:
        return None
    return base64.urlsafe_b64encode(items[-1].id.bytes).rstrip(b"=").decode()
