"""How events reach their subscribers: PostgreSQL alone, or a broker that is fed from the same log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from app.kernel.db import Queries
from app.kernel.queue import Subscriber


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """An event as it is logged: its payload is JSON."""

    id: UUID
    type: str
    version: int
    payload: str


class EventTransport(Protocol):
    """Delivers each event at least once to each subscription; handlers cannot tell which transport it is."""

    async def publish(self, db: Queries, events: Sequence[PublishedEvent]) -> None:
        """Append events to the log, in the transaction of the caller, and see to their delivery after its commit."""
        ...

    async def subscribe(self, db: Queries, subscribers: Sequence[Subscriber]) -> None:
        """Keep events for these subscribers from now on. Repeated while they are wanted; safe to repeat."""
        ...
