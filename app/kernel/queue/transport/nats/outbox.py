"""Publishing through NATS: events wait in an outbox, in the transaction of the publisher, for a relay."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.kernel.db import Queries
from app.kernel.queue import Subscriber
from app.kernel.queue.transport import PublishedEvent
from app.kernel.queue.transport.postgres import PostgresEvents, parameters

CHANNEL = "kernel_events"
"""Notified when events wait in the outbox."""

_PUBLISH = """
    WITH given AS (
        SELECT * FROM unnest(%(ids)s::uuid[], %(types)s::text[], %(versions)s::integer[], %(payloads)s::text[])
            WITH ORDINALITY AS e (id, type, version, payload, place)
    ), logged AS (
        INSERT INTO kernel.events (id, type, version, payload, trace_context)
        SELECT id, type, version, payload::jsonb, %(trace)s FROM given
    ), waiting AS (
        INSERT INTO kernel.event_outbox (event_id, type, version, payload, trace_context)
        SELECT id, type, version, payload::jsonb, %(trace)s FROM given ORDER BY place
    )
    SELECT kernel.notify_after_commit('kernel_events', '')
"""


@dataclass(frozen=True, slots=True)
class OutboxEvents:
    """Events in `kernel.events`, and in `kernel.event_outbox` until they are in NATS."""

    async def publish(self, db: Queries, events: Sequence[PublishedEvent]) -> None:
        await db.run(_PUBLISH, parameters(events))

    async def subscribe(self, db: Queries, subscribers: Sequence[Subscriber]) -> None:
        """Register subscriptions. The relay makes their consumers in NATS before it sends further events."""
        await PostgresEvents().subscribe(db, subscribers)
