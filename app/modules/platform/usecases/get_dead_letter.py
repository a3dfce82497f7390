"""What is known of a dead letter?"""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.queue.dead_letters import DeadLetterDetails, DeadLetters
from app.modules.platform.domain.queue import DeadLetterNotFound, DeadLetterRef


@operation("platform.get_dead_letter", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class GetDeadLetter:
    """See everything about a dead letter: its payload, and why it was given up."""

    db: Database
    dead_letters: DeadLetters

    async def __call__(self, letter: DeadLetterRef) -> DeadLetterDetails:
        """Return the dead letter. Raises DeadLetterNotFound. Safe to repeat."""
        found = await self.dead_letters.get(self.db, letter.id)
        if found is None:
            raise DeadLetterNotFound(f"there is no dead letter {letter.id}")
        return found
