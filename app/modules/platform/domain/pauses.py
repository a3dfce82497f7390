"""Pauses of queues and schedules: their reason and their expiry."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from annotated_types import Interval, Len

from app.kernel.db import Queries, now
from app.kernel.errors import Invalid
from app.kernel.fields import Doc, Option
from app.modules.platform.domain.queue import check_zone

_LONGEST = timedelta(days=366)

Reason = Annotated[
    Annotated[str, Len(1, 500)] | None, Doc("Why it is paused, for other operators.", "the mail server is down")
]
Seconds = Annotated[
    Annotated[float, Interval(ge=1, le=_LONGEST.total_seconds())] | None,
    Doc("Duration of the pause. Without an expiry, the pause ends when it is resumed."),
    Option("for", "duration"),
]
Until = Annotated[datetime | None, Doc("Time at which the pause expires.", None)]


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause by the clock of the database; without `until` it does not expire."""

    until: datetime | None
    reason: str | None

    def details(self) -> dict[str, str]:
        """Return what the audit trail keeps."""
        found = {"until": self.until and self.until.isoformat(), "reason": self.reason}
        return {name: value for name, value in found.items() if value is not None}


async def pause_of(db: Queries, seconds: float | None, until: datetime | None, reason: str | None) -> Pause:
    """Return the pause that somebody wants. Raises Invalid for an expiry in the past or after more than 366 days."""
    if seconds is None and until is None:
        return Pause(None, reason)
    if seconds is not None and until is not None:
        raise Invalid("give either seconds or until", (("until", "excludes seconds"),))
    check_zone(until=until)
    at = await now(db)
    until = at + timedelta(seconds=seconds or 0) if until is None else until
    if not at < until <= at + _LONGEST:
        message = f"must be in the future, by {_LONGEST.days} days at most"
        raise Invalid(f"until {message}", (("until", message),))
    return Pause(until, reason)
