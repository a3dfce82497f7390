"""Who wants which events: rows that consumers register, so that publishers need not know them."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.queue import Subscriber

_REGISTER = """
    INSERT INTO kernel.subscriptions (subscriber, event_type, queue, max_attempts, timeout_s, in_order, seen_at)
    VALUES (%s, %s, %s, %s, %s, %s, now())
    ON CONFLICT (subscriber) DO UPDATE
    SET event_type = excluded.event_type, queue = excluded.queue, max_attempts = excluded.max_attempts,
        timeout_s = excluded.timeout_s, in_order = excluded.in_order, seen_at = now()
"""


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """The subscriptions of this release."""

    subscribers: Sequence[Subscriber]

    async def register(self, db: Database) -> None:
        """Store them, and that they are still wanted. One that no consumer has wanted for a week is forgotten.

        Not at once: while a release is rolled out, older and newer processes run side by side. Safe to repeat.
        """
        for s in self.subscribers:
            given = (s.name, s.event.event_type, s.queue, s.max_attempts, s.timeout_s, s.in_order)
            await db.run(_REGISTER, given)
