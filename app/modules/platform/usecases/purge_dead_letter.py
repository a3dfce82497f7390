"""Purge a dead letter."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue.dead_letters import DeadLetters
from app.modules.platform.domain.queue import DeadLetterNotFound, DeadLetterRef


@operation("platform.purge_dead_letter", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class PurgeDeadLetter:
    """Remove a dead letter for good."""

    db: Database
    dead_letters: DeadLetters
    audit: Audit

    async def __call__(self, caller: Caller, letter: DeadLetterRef) -> None:
        """Remove it. Raises DeadLetterNotFound."""
        async with self.db.begin() as tx:
            done = await self.dead_letters.purge(tx, letter.id)
            if not done.changed:
                raise DeadLetterNotFound(f"there is no dead letter {letter.id}")
            await self.audit.record(tx, caller, "platform.purge_dead_letter", target=letter.id)
