"""How many dead letters would it be?"""

from dataclasses import dataclass
from datetime import datetime

from app.kernel.db import Database
from app.kernel.errors import Invalid
from app.kernel.operations import Kind, operation
from app.kernel.pages import Cursor
from app.kernel.queue.dead_letters import DeadLetterFilters, DeadLetters
from app.modules.platform.domain.queue import Name, check_zone


@dataclass(frozen=True, slots=True)
class DeadLettersChosen:
    """Which dead letters: those that fit all that is given, or explicitly `all`; and where to go on."""

    queue: Name | None = None
    task: Name | None = None
    died_before: datetime | None = None
    all: bool = False
    cursor: Cursor | None = None


@operation("platform.count_dead_letters", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class CountDeadLetters:
    """Count the dead letters that were chosen."""

    db: Database
    dead_letters: DeadLetters

    async def __call__(self, chosen: DeadLettersChosen) -> int:
        """Return how many there are. Raises Invalid when nothing says which. Safe to repeat."""
        return await self.dead_letters.count(self.db, filters_of(chosen))


def filters_of(chosen: DeadLettersChosen) -> DeadLetterFilters:
    """Return which dead letters were chosen. Raises Invalid when nothing, or what makes no sense, says which."""
    check_zone(died_before=chosen.died_before)
    filters = DeadLetterFilters(chosen.queue, chosen.task, chosen.died_before)
    if chosen.all != (filters == DeadLetterFilters()):
        raise Invalid("say which dead letters: by queue, task or age, or all of them")
    return filters
