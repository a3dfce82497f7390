"""Retry a dead letter."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue import JobExists
from app.kernel.queue.dead_letters import DeadLetters
from app.modules.platform.domain.queue import DeadLetterNotFound, DeadLetterRef
from app.modules.platform.usecases.retry_job import JobChanged


@operation("platform.retry_dead_letter", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class RetryDeadLetter:
    """Make a dead letter a job again, with all attempts before it. In a group it is the last one now."""

    db: Database
    dead_letters: DeadLetters
    audit: Audit

    async def __call__(self, caller: Caller, letter: DeadLetterRef) -> JobChanged:
        """Return the job. Raises DeadLetterNotFound, JobExists when its unique key is taken. Not safe to repeat."""
        async with self.db.begin() as tx:
            done = await self.dead_letters.revive(tx, letter.id)
            if not done.seen:
                raise DeadLetterNotFound(f"there is no dead letter {letter.id}")
            if not done.changed:
                raise JobExists("an unfinished job has its unique key by now; cancel that one, or purge this one")
            await self.audit.record(tx, caller, "platform.retry_dead_letter", target=letter.id)
        return JobChanged(letter.id, "ready")
