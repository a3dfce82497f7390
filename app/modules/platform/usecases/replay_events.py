"""Replay events."""

from dataclasses import dataclass
from datetime import datetime

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.pages import mark
from app.kernel.queue.events import EventLog
from app.modules.platform.usecases.count_replay import ReplayWanted, stretch_of

_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many events were enqueued; when there may be more, the time of the last one and where to go on."""

    enqueued_count: int
    next_from: datetime | None
    next_cursor: str | None


@operation("platform.replay_events", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ReplayEvents:
    """Deliver events of the log to a subscriber once more, up to 2000 at a time; the answer says where to go on."""

    db: Database
    events: EventLog
    audit: Audit

    async def __call__(self, caller: Caller, wanted: ReplayWanted) -> Replayed:
        """Return what was done. Raises SubscriberNotFound, Invalid. Not safe to repeat: each delivers once more.

        In the order of publishing, and behind what is enqueued within the next hour.
        """
        stretch = await stretch_of(self.db, self.events, wanted)
        async with self.db.begin() as tx:
            count, last = await self.events.replay(tx, wanted.subscriber, stretch, _AT_ONCE)
            await self.audit.record(
                tx,
                caller,
                "platform.replay_events",
                target=wanted.subscriber,
                **{"from": stretch.from_.isoformat(), "to": stretch.to.isoformat()},
                enqueued_count=count,
            )
        if last is None or count < _AT_ONCE:
            return Replayed(count, None, None)
        at, event_id = last
        return Replayed(count, at, mark(event_id, stretch.to, at))
