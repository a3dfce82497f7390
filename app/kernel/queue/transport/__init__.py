"""Transports deliver events to subscribers, through PostgreSQL alone or through a broker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from app.kernel.db import Queries
from app.kernel.queue import Subscriber


@dataclass(frozen=True, slots=True)
class PublishedEvent:
    """An event in the log. Its payload is JSON."""

    id: UUID
    type: str
    version: int
    payload: str


class EventTransport(Protocol):
    """Delivers each event at least once to each subscription."""

    async def publish(self, db: Queries, events: Sequence[PublishedEvent]) -> None:
        """Append events to the log in the transaction of the caller. They are delivered after its commit."""
        ...

    async def subscribe(self, db: Queries, subscribers: Sequence[Subscriber]) -> None:
        """Register subscriptions. Called periodically; safe to repeat."""
        ...
