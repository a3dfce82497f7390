"""Tell nobody of a group of errors for a while."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from annotated_types import Interval

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.sentinel import Errors

_YEAR_S = 365 * 86400.0


@dataclass(frozen=True, slots=True)
class ErrorToMute:
    """A group of errors, and for how long."""

    id: UUID
    seconds: Annotated[float, Interval(ge=1, le=_YEAR_S)] = 86400.0


@operation("platform.mute_error", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class MuteError:
    """Tell nobody of a group of errors for a while; it is counted all the same."""

    db: Database
    errors: Errors
    audit: Audit

    async def __call__(self, caller: Caller, error: ErrorToMute) -> None:
        """Mute it. Raises ErrorNotFound. Safe to repeat: it begins anew."""
        async with self.db.begin() as tx:
            await self.errors.mute(tx, error.id, error.seconds)
            await self.audit.record(tx, caller, "platform.mute_error", target=error.id, seconds=int(error.seconds))
