"""Close a group of errors."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.sentinel import Errors
from app.modules.platform.usecases.get_error import ErrorRef


@operation("platform.resolve_error", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ResolveError:
    """Close a group of errors. When there is one more, it is regressed, and people are told."""

    db: Database
    errors: Errors
    audit: Audit

    async def __call__(self, caller: Caller, error: ErrorRef) -> None:
        """Close it. Raises ErrorNotFound. Safe to repeat."""
        async with self.db.begin() as tx:
            await self.errors.resolve(tx, error.id)
            await self.audit.record(tx, caller, "platform.resolve_error", target=error.id)
