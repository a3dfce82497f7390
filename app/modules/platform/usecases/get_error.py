"""What is known of an error?"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.sentinel import Errors, StoredError


@dataclass(frozen=True, slots=True)
class ErrorRef:
    """A group of errors."""

    id: UUID


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """A group of errors, with the contexts of the last few."""

    error: StoredError
    samples: list[dict[str, Any]]


@operation("platform.get_error", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class GetError:
    """See a group of errors: how often, since when, where, and what was going on the last times."""

    db: Database
    errors: Errors

    async def __call__(self, error: ErrorRef) -> ErrorDetails:
        """Return the group. Raises ErrorNotFound. Safe to repeat."""
        found, samples = await self.errors.get(self.db, error.id)
        return ErrorDetails(found, samples)
