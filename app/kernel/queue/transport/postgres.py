"""Event transport through PostgreSQL: one statement logs an event and inserts a job for each subscription."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.kernel.db import Queries
from app.kernel.queue import Subscriber
from app.kernel.queue.enqueue import insert_jobs
from app.kernel.queue.transport import PublishedEvent
from app.kernel.telemetry.traces import current_context

_PUBLISH = insert_jobs(
    given="""
    given AS (
        SELECT * FROM unnest(%(ids)s::uuid[], %(types)s::text[], %(versions)s::integer[], %(payloads)s::text[])
            WITH ORDINALITY AS e (id, type, version, payload, place)
    ), logged AS (
        INSERT INTO kernel.events (id, type, version, payload, trace_context)
        SELECT id, type, version, payload::jsonb, %(trace)s FROM given
    ),
    """,
    rows="given JOIN kernel.subscriptions s ON s.event_type = given.type ORDER BY given.place",
    queue="s.queue",
    task="s.subscriber",
    payload="given.payload::jsonb",
    max_attempts="s.max_attempts",
    timeout_s="s.timeout_s",
    turn_key="CASE WHEN s.in_order THEN 'subscriber/' || s.subscriber END",
    in_order="s.in_order",
    event_id="given.id",
    event_version="given.version",
)

_SUBSCRIBE = """
    INSERT INTO kernel.subscriptions (subscriber, event_type, queue, max_attempts, timeout_s, in_order, seen_at)
    VALUES (%s, %s, %s, %s, %s, %s, now())
    ON CONFLICT (subscriber) DO UPDATE
    SET event_type = excluded.event_type, queue = excluded.queue, max_attempts = excluded.max_attempts,
        timeout_s = excluded.timeout_s, in_order = excluded.in_order, seen_at = now()
"""


@dataclass(frozen=True, slots=True)
class PostgresEvents:
    """Events in `kernel.events`, subscriptions in `kernel.subscriptions`."""

    async def publish(self, db: Queries, events: Sequence[PublishedEvent]) -> None:
        await db.run(_PUBLISH, parameters(events))

    async def subscribe(self, db: Queries, subscribers: Sequence[Subscriber]) -> None:
        """Register subscriptions. One that no consumer registers for a week is deleted.

        It is kept for so long because older and newer releases run concurrently during a deployment.
        """
        for s in subscribers:
            given = (s.name, s.event.event_type, s.queue, s.max_attempts, s.timeout_s, s.in_order)
            await db.run(_SUBSCRIBE, given)


def parameters(events: Sequence[PublishedEvent]) -> dict[str, object]:
    """Return the parameters of a statement that appends events to `kernel.events`."""
    return {
        "ids": [event.id for event in events],
        "types": [event.type for event in events],
        "versions": [event.version for event in events],
        "payloads": [event.payload for event in events],
        "trace": current_context(),
    }
