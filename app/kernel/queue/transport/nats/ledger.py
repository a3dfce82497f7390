"""What becomes of an event that was delivered by NATS: acknowledged, or turned into a job or a dead letter.

An event has one attempt straight from its message. What is not done then becomes a job, so retries, dead letters,
order, pauses and limits are those of jobs. `kernel.event_inbox` has the events that a subscriber has handled in a
transaction, or that became jobs: delivered again, they are acknowledged and ignored.
"""

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, LiteralString

from app.kernel.db import Queries
from app.kernel.errors import Invalid
from app.kernel.identifiers import uuid7_text
from app.kernel.queue import Subscriber
from app.kernel.queue.enqueue import insert_jobs
from app.kernel.queue.worker import Job
from app.kernel.queue.worker.leases import Leases
from app.kernel.text import storable

ACK, NAK, IN_PROGRESS, TERM = b"+ACK", b"-NAK", b"+WPI", b"+TERM"

_GIVEN = """
    given AS (
        SELECT e.*, coalesce(
            e.text::jsonb, (SELECT payload FROM kernel.events l WHERE l.id = e.event_id LIMIT 1)
        ) AS payload
        FROM unnest(
            %(ids)s::uuid[], %(events)s::uuid[], %(tasks)s::text[], %(queues)s::text[], %(versions)s::integer[],
            %(payloads)s::text[], %(attempts)s::integer[], %(timeouts)s::real[], %(orders)s::boolean[],
            %(traces)s::text[]
        ) WITH ORDINALITY AS e (
            id, event_id, subscriber, queue, version, text, max_attempts, timeout_s, in_order, trace_context, place
        )
    ), taken AS (
        INSERT INTO kernel.event_inbox (event_id, subscriber) SELECT event_id, subscriber FROM given
        ON CONFLICT DO NOTHING RETURNING event_id, subscriber
    )
"""
_TAKE = insert_jobs(
    given=_GIVEN + ",",
    rows="given JOIN taken USING (event_id, subscriber) ORDER BY place",
    id="given.id",
    task="subscriber",
    payload="payload",
    run_at="now() + %(delay_s)s::float8 * interval '1 second'",
    attempt="%(attempt)s",
    turn_key="CASE WHEN in_order THEN 'subscriber/' || subscriber END",
    in_order="in_order",
    event_id="event_id",
    event_version="version",
    trace_context="trace_context",
    errors="%(error)s::jsonb",
    then="SELECT (SELECT count(*) FROM added), (SELECT count(*) FROM notified)",
)
_BURY = (
    "WITH"  # noqa: S608 - literals
    + _GIVEN
    + """, buried AS (
    INSERT INTO kernel.dead_letters
        (id, queue, task, payload, reason, attempt, max_attempts, timeout_s, event_id, event_version, trace_context,
         errors, created_at, cause)
    SELECT id, queue, subscriber, payload, %(reason)s, %(attempt)s, max_attempts, timeout_s, event_id, version,
        trace_context, %(error)s::jsonb, now(), coalesce(%(cause)s, kernel.cause_of(%(reason)s))
    FROM given JOIN taken USING (event_id, subscriber)
    RETURNING id
    )
    SELECT count(*) FROM buried
    """
)
_HANDLED = "INSERT INTO kernel.event_inbox (event_id, subscriber) VALUES (%s, %s) ON CONFLICT DO NOTHING"


@dataclass(slots=True, eq=False)
class Delivery(Job):
    """An event from NATS as a job that is not in the database."""

    subscriber: Subscriber | None = None
    answer: Callable[[bytes], Awaitable[None]] | None = None
    """Answers the server: ACK, NAK, IN_PROGRESS."""
    ended: Callable[["Delivery"], None] | None = None

    async def acknowledge(self) -> None:
        await self.reply(ACK)

    async def reply(self, word: bytes) -> None:
        """Answer the server; if that fails, the event is delivered again."""
        if self.answer is not None:
            with suppress(Exception):
                await self.answer(word)

    def released(self) -> None:
        if self.ended is not None:
            self.ended(self)


def delivery(
    subscriber: Subscriber,
    event_id: str,
    version: int,
    payload: str | None,
    trace_context: str | None,
    answer: Callable[[bytes], Awaitable[None]],
    ended: Callable[[Delivery], None],
) -> Delivery:
    """Return an event that was delivered. `payload` is None if the log has it."""
    return Delivery(
        id=uuid7_text(),
        task=subscriber.name,
        payload=payload,
        attempt=0,
        max_attempts=subscriber.max_attempts,
        timeout_s=subscriber.timeout_s,
        event_id=event_id,
        event_version=version,
        trace_context=trace_context,
        rank=0,
        token="",
        renewed_at=time.monotonic(),
        subscriber=subscriber,
        answer=answer,
        ended=ended,
    )


async def take(db: Queries, deliveries: Sequence[Delivery], **failure: Any) -> int:
    """Turn events into jobs, except those that became jobs before; return the number of jobs. Raises Unavailable."""
    return await _stored(db, _TAKE, deliveries, {"delay_s": 0.0, "attempt": 0, "error": None} | failure)


async def _stored(db: Queries, sql: LiteralString, deliveries: Sequence[Delivery], given: dict[str, Any]) -> int:
    """Store events as jobs or dead letters; return their number."""
    try:
        row = await db.one(sql, _given(deliveries) | given)
    except Invalid:  # one of them is not ours: the database cannot store its payload as JSON
        if len(deliveries) > 1:
            return sum([await _stored(db, sql, [one], given) for one in deliveries])
        row = await db.one(sql, _given(deliveries, as_text=True) | given)
    return row[0] if row else 0


class DeliveryLeases(Leases):
    """Ends leases of jobs, and deliveries of events."""

    async def finish(self, db: Queries, jobs: Sequence[Job], outcome: str = "done") -> int:
        """Finish jobs; return the number of those whose lease was valid, or that nobody had handled before."""
        leased = [job for job in jobs if not isinstance(job, Delivery)]
        finished = await Leases.finish(self, db, leased, outcome) if leased else 0
        for job in jobs:
            if isinstance(job, Delivery):
                is_first = 1
                if job.subscriber is not None and job.subscriber.mode == "tx":
                    is_first = await db.run(_HANDLED, (job.event_id, job.task))
                if job.subscriber is None or job.subscriber.mode != "tx" or not is_first:
                    await job.acknowledge()  # otherwise after the commit
                finished += is_first
        return finished

    async def postpone(self, db: Queries, job: Job, delay_s: float, error: str | None) -> bool:
        if not isinstance(job, Delivery):
            return await Leases.postpone(self, db, job, delay_s, error)
        failure = self._failure(job, error)
        given = {"delay_s": delay_s, "attempt": failure["counts"], "error": failure["error"]}
        taken = await take(db, [job], **given)
        await job.acknowledge()
        return taken == 1

    async def die(self, db: Queries, job: Job, reason: str, error: str | None, cause: str | None) -> bool:
        if not isinstance(job, Delivery):
            return await Leases.die(self, db, job, reason, error, cause)
        failure = self._failure(job, error)
        given = {"reason": storable(reason[:2000]), "attempt": failure["counts"], "error": failure["error"]}
        given["cause"] = cause
        dead = await _stored(db, _BURY, [job], given)
        await job.acknowledge()
        return dead == 1

    async def hand_back(self, db: Queries, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if isinstance(job, Delivery):
                await job.reply(NAK)
        if leased := [job for job in jobs if not isinstance(job, Delivery)]:
            await Leases.hand_back(self, db, leased)


def _json(payload: str | None, as_text: bool) -> str | None:
    """Return a payload for the database; of a message that is not ours, its text."""
    return json.dumps(storable(payload)) if payload is not None and as_text else payload


def _given(deliveries: Sequence[Delivery], *, as_text: bool = False) -> dict[str, Any]:
    known = [(job, job.subscriber) for job in deliveries if job.subscriber is not None]
    return {
        "ids": [job.id for job, _ in known],
        "events": [job.event_id for job, _ in known],
        "tasks": [job.task for job, _ in known],
        "queues": [subscriber.queue for _, subscriber in known],
        "versions": [job.event_version for job, _ in known],
        "payloads": [_json(job.payload, as_text) for job, _ in known],
        "attempts": [job.max_attempts for job, _ in known],
        "timeouts": [job.timeout_s for job, _ in known],
        "orders": [subscriber.in_order for _, subscriber in known],
        "traces": [job.trace_context for job, _ in known],
    }
