"""Purge many dead letters."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.pages import after, mark
from app.kernel.queue.dead_letters import DeadLetters
from app.modules.platform.usecases.count_dead_letters import DeadLettersChosen, filters_of

_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Purged:
    """How many there were, and where to go on, if at all."""

    deleted_count: int
    next_cursor: str | None


@operation("platform.purge_dead_letters", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class PurgeDeadLetters:
    """Remove dead letters for good, up to 1000 at a time; the answer says where to go on."""

    db: Database
    dead_letters: DeadLetters
    audit: Audit

    async def __call__(self, caller: Caller, chosen: DeadLettersChosen) -> Purged:
        """Return what was done. Raises Invalid when nothing says which. Safe to repeat."""
        filters = filters_of(chosen)
        async with self.db.begin() as tx:
            done = await self.dead_letters.purge_some(tx, filters, _AT_ONCE, after(chosen.cursor))
            await self.audit.record(
                tx,
                caller,
                "platform.purge_dead_letters",
                queue=chosen.queue,
                task=chosen.task,
                died_before=chosen.died_before and chosen.died_before.isoformat(),
                deleted_count=done.changed,
            )
        return Purged(done.changed, done.last and mark(done.last))
