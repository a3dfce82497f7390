"""The way into the queue: SQL that enqueues jobs and publishes events."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID

from opentelemetry.trace import SpanKind

from app.kernel.db import Queries
from app.kernel.errors import Invalid
from app.kernel.identifiers import uuid7
from app.kernel.queue import Event, JobExists, OnConflict, Task
from app.kernel.queue.codec import encode, version_of
from app.kernel.queue.limits import LONGEST_DELAY_S, misfit
from app.kernel.telemetry.traces import current_context, span

_COPY_FROM = 1000  # fewer are inserted, which also respects unique keys
_KEY_BYTES = 1024  # with the longest names, an entry of an index must stay below a third of a page: 2704 bytes

_INSERT = """
    WITH wanted AS (
        SELECT coalesce(%(at)s::timestamptz, now() + %(delay_s)s::float8 * interval '1 second') AS run_at
    ), added AS (
        INSERT INTO kernel.jobs
            (id, queue, task, payload, state, priority, run_at, rank, max_attempts, timeout_s,
             unique_key, turn_key, turn_limit, in_order, trace_context)
        SELECT %(id)s, %(queue)s, %(task)s, %(payload)s::jsonb,
            CASE WHEN run_at <= now() THEN 'ready' ELSE 'scheduled' END, %(priority)s, run_at,
            kernel.job_rank(run_at, %(priority)s), %(max_attempts)s, %(timeout_s)s,
            %(unique_key)s, %(turn_key)s, %(turn_limit)s, %(in_order)s, %(trace)s
        FROM wanted
"""
_KEEP = """
        ON CONFLICT (task, unique_key) WHERE unique_key IS NOT NULL DO NOTHING
"""
_REPLACE = """
        ON CONFLICT (task, unique_key) WHERE unique_key IS NOT NULL DO UPDATE
        SET payload = excluded.payload, priority = excluded.priority, run_at = excluded.run_at, rank = excluded.rank,
            state = CASE WHEN jobs.state = 'waiting' THEN 'waiting' ELSE excluded.state END
        WHERE jobs.state <> 'leased'
"""
_NOTIFY = """
        RETURNING id, queue, state
    )
    SELECT id, CASE WHEN state = 'ready' THEN pg_notify('kernel_jobs', 'q' || queue)::text END FROM added
"""

_INSERT_MANY = """
    WITH added AS (
        INSERT INTO kernel.jobs
            (id, queue, task, payload, state, priority, run_at, rank, max_attempts, timeout_s, trace_context)
        SELECT given.id, %(queue)s, %(task)s, given.payload::jsonb,
            CASE WHEN %(delay_s)s::float8 > 0 THEN 'scheduled' ELSE 'ready' END, %(priority)s, run_at,
            kernel.job_rank(run_at, %(priority)s), %(max_attempts)s, %(timeout_s)s, %(trace)s
        FROM unnest(%(ids)s::uuid[], %(payloads)s::text[]) AS given (id, payload),
            (SELECT now() + %(delay_s)s::float8 * interval '1 second') AS t (run_at)
    )
    SELECT CASE WHEN %(delay_s)s::float8 <= 0 THEN pg_notify('kernel_jobs', 'q' || %(queue)s)::text END
"""

_COPY = """
    COPY kernel.jobs (id, queue, task, payload, state, priority, run_at, rank, max_attempts, timeout_s, trace_context)
    FROM STDIN
"""

_PUBLISH = """
    WITH given AS (
        SELECT * FROM unnest(%(ids)s::uuid[], %(types)s::text[], %(versions)s::integer[], %(payloads)s::text[])
            WITH ORDINALITY AS e (id, type, version, payload, place)
    ), logged AS (
        INSERT INTO kernel.events (id, type, version, payload, trace_context)
        SELECT id, type, version, payload::jsonb, %(trace)s FROM given
    ), delivered AS (
        INSERT INTO kernel.jobs
            (id, queue, task, payload, rank, max_attempts, timeout_s, turn_key, in_order, event_id, event_version,
             trace_context)
        SELECT kernel.uuid7(), s.queue, s.subscriber, given.payload::jsonb, kernel.job_rank(now(), 0), s.max_attempts,
            s.timeout_s, CASE WHEN s.in_order THEN 'subscriber/' || s.subscriber END, s.in_order, given.id,
            given.version, %(trace)s
        FROM given JOIN kernel.subscriptions s ON s.event_type = given.type
        ORDER BY given.place
        RETURNING queue
    )
    SELECT pg_notify('kernel_jobs', 'q' || queue) FROM (SELECT DISTINCT queue FROM delivered) q
"""


@dataclass(frozen=True, slots=True)
class PostgresQueue:
    """The queue in the tables of `kernel`."""

    async def enqueue(
        self,
        db: Queries,
        task: Task[Any],
        payload: object = None,
        *,
        delay_s: float = 0,
        at: datetime | None = None,
        priority: int = 0,
        unique_key: str | None = None,
        on_conflict: OnConflict = "keep",
        group_key: str | None = None,
        concurrency_key: str | None = None,
        max_attempts: int | None = None,
        timeout_s: float | None = None,
    ) -> UUID:
        if group_key is not None and concurrency_key is not None:
            raise Invalid("a job has a group_key or a concurrency_key, not both: a group runs one at a time anyway")
        if on_conflict not in ("keep", "replace", "refuse"):
            raise Invalid("on_conflict must be keep, replace or refuse")
        max_attempts = task.max_attempts if max_attempts is None else max_attempts
        timeout_s = task.timeout_s if timeout_s is None else timeout_s
        _check_ranges(delay_s=delay_s, priority=priority, max_attempts=max_attempts, timeout_s=timeout_s)
        if at is not None:
            _check_moment(at)
        keys = {"unique_key": unique_key, "group_key": group_key, "concurrency_key": concurrency_key}
        for name, key in keys.items():
            if key is not None:
                _check_key(name, key)
        turn_key = None
        if group_key is not None:
            turn_key = f"group/{group_key}"
        elif concurrency_key is not None:
            turn_key = f"{task.name}/{concurrency_key}"
        job_id = uuid7()
        wanted: dict[str, Any] = {
            "id": job_id,
            "queue": task.queue,
            "task": task.name,
            "payload": _payload(task, payload),
            "at": at,
            "delay_s": delay_s,
            "priority": priority,
            "max_attempts": max_attempts,
            "timeout_s": timeout_s,
            "unique_key": unique_key,
            "turn_key": turn_key,
            "turn_limit": task.concurrency,
            "in_order": group_key is not None,
        }
        with span(f"enqueue {task.name}", SpanKind.PRODUCER):
            wanted["trace"] = current_context()
            if unique_key is not None:
                return await self._unique(db, wanted, on_conflict)
            await db.run(_INSERT + _NOTIFY, wanted)
            return job_id

    async def _unique(self, db: Queries, wanted: dict[str, Any], on_conflict: str) -> UUID:
        for _ in range(3):  # the one that was in the way may finish between the two statements
            row = await db.one(_INSERT + (_REPLACE if on_conflict == "replace" else _KEEP) + _NOTIFY, wanted)
            if row is not None:
                return row[0]
            found = await db.one(
                "SELECT id FROM kernel.jobs WHERE task = %(task)s AND unique_key = %(unique_key)s", wanted
            )
            if found is not None and on_conflict == "keep":
                return found[0]
            if found is not None:
                raise JobExists(f"there is an unfinished job of {wanted['task']} with this unique key: {found[0]}")
        raise JobExists(f"jobs of {wanted['task']} with this unique key come and go")

    async def enqueue_many(
        self, db: Queries, task: Task[Any], payloads: Iterable[object], *, delay_s: float = 0, priority: int = 0
    ) -> int:
        _check_ranges(delay_s=delay_s, priority=priority)
        left = iter(payloads)
        constant: dict[str, Any] = {"queue": task.queue, "task": task.name, "delay_s": delay_s, "priority": priority}
        constant |= {"max_attempts": task.max_attempts, "timeout_s": task.timeout_s}
        total = 0
        with span(f"enqueue {task.name}", SpanKind.PRODUCER):
            constant["trace"] = current_context()
            while chunk := [(uuid7(), _payload(task, p)) for p in islice(left, 10 * _COPY_FROM)]:
                total += len(chunk)
                if len(chunk) < _COPY_FROM:
                    ids, texts = zip(*chunk, strict=True)
                    await db.run(_INSERT_MANY, {**constant, "ids": list(ids), "payloads": list(texts)})
                else:
                    await self._copy(db, constant, chunk, total - len(chunk))
        return total

    async def _copy(self, db: Queries, job: dict[str, Any], chunk: list[tuple[UUID, str | None]], place: int) -> None:
        moment = await db.one(
            "SELECT run_at, kernel.job_rank(run_at, %(priority)s)"
            " FROM (SELECT now() + %(delay_s)s::float8 * interval '1 second') AS t (run_at)",
            job,
        )
        assert moment is not None
        run_at, rank = moment
        state = "scheduled" if job["delay_s"] > 0 else "ready"
        before = (job["queue"], job["task"])
        after = (job["max_attempts"], job["timeout_s"], job["trace"])
        # a microsecond apart: a worker that goes on from a rank would else pass all those of that rank again
        rows = (
            (id_, *before, text, state, job["priority"], run_at, rank + n, *after)
            for n, (id_, text) in enumerate(chunk, place)
        )
        await db.copy(_COPY, rows)
        if state == "ready":
            await db.run("SELECT pg_notify('kernel_jobs', 'q' || %(queue)s)", job)

    async def publish(self, db: Queries, *events: Event) -> None:
        types = [event.event_type for event in events]
        given: dict[str, Any] = {
            "ids": sorted(uuid7() for _ in events),  # so that the log keeps their order
            "types": types,
            "versions": [version_of(event) for event in events],
            "payloads": [encode(type(event), event) for event in events],
        }
        with span(f"publish {' '.join(sorted(set(types)))}", SpanKind.PRODUCER):
            await db.run(_PUBLISH, {**given, "trace": current_context()})


def _payload(task: Task[Any], payload: object) -> str | None:
    if task.payload is None:
        if payload is not None:
            raise Invalid(f"{task.name} takes no payload")
        return None
    return encode(task.payload, payload)


def _check_ranges(**options: object) -> None:
    for option, value in options.items():
        if said := misfit(option, value):
            raise Invalid(said)


def _check_moment(at: datetime) -> None:
    if at.tzinfo is None:
        raise Invalid("at must have a time zone")
    if abs(at - datetime.now(UTC)) > timedelta(seconds=LONGEST_DELAY_S):
        raise Invalid(f"at must be within {LONGEST_DELAY_S / 86400:.0f} days of now")


def _check_key(name: str, key: str) -> None:
    try:
        fits = 0 < len(key.encode()) <= _KEY_BYTES and "\0" not in key
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise Invalid(f"{name} must be text of 1 to {_KEY_BYTES} bytes of UTF-8, without NUL")
