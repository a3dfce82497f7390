"""How many events would it be?"""

from dataclasses import dataclass
from datetime import datetime

from app.kernel.db import Database
from app.kernel.errors import Invalid
from app.kernel.operations import Kind, operation
from app.kernel.pages import WorkCursor, marked
from app.kernel.queue.events import EventLog, Stretch
from app.modules.platform.domain.queue import Name, SubscriberNotFound, check_zone


@dataclass(frozen=True, slots=True)
class ReplayWanted:
    """Which subscriber, and events from one moment on and before another, now unless said; and where to go on."""

    subscriber: Name
    from_: datetime
    to: datetime | None = None
    cursor: WorkCursor | None = None


@operation("platform.count_replay", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class CountReplay:
    """Count the events that a replay would deliver."""

    db: Database
    events: EventLog

    async def __call__(self, wanted: ReplayWanted) -> int:
        """Return how many there are. Raises SubscriberNotFound, Invalid. Safe to repeat."""
        return await self.events.count(self.db, wanted.subscriber, await stretch_of(self.db, self.events, wanted))


async def stretch_of(db: Database, events: EventLog, wanted: ReplayWanted) -> Stretch:
    """Return the part of the log that is wanted. Raises SubscriberNotFound, Invalid."""
    check_zone(**{"from": wanted.from_, "to": wanted.to})
    known = await events.subscribers(db)
    if wanted.subscriber not in known:
        raise SubscriberNotFound(f"there is no subscriber {wanted.subscriber}, but {', '.join(known) or 'none at all'}")
    if wanted.cursor is not None:
        last, (to, at) = marked(wanted.cursor, 2)
        return Stretch(at, to, last)
    to = wanted.to or await events.now(db)
    if wanted.from_ >= to:
        raise Invalid("from must be before to", (("from", "must be before to"),))
    return Stretch(wanted.from_, to)
