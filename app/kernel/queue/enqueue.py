"""Enqueueing of jobs and publishing of events. All statements that insert jobs are made here."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Literal, LiteralString
from uuid import UUID

from opentelemetry.trace import SpanKind

from app.kernel.db import Queries
from app.kernel.errors import Invalid
from app.kernel.identifiers import uuid7
from app.kernel.queue import LONGEST_DELAY_S, Event, JobExists, Task, out_of_range
from app.kernel.queue.codec import encode, version_of
from app.kernel.queue.transport import EventTransport, PublishedEvent
from app.kernel.telemetry.traces import current_context, span

OnConflict = Literal["keep", "replace", "refuse"]

_COPY_FROM = 1000  # minimum number of jobs for COPY
_KEY_BYTES = 1024  # with the longest names, an index entry must stay below a third of a page: 2704 bytes

_DISTINCT_KEYS: LiteralString = "ON CONFLICT (task, unique_key) WHERE unique_key IS NOT NULL "
KEEP_UNFINISHED: LiteralString = _DISTINCT_KEYS + "DO NOTHING"
_REPLACE: LiteralString = (
    _DISTINCT_KEYS
    + """DO UPDATE
        SET payload = excluded.payload, priority = excluded.priority, run_at = excluded.run_at, rank = excluded.rank,
            state = CASE WHEN jobs.state = 'waiting' THEN 'waiting' ELSE excluded.state END
        WHERE jobs.state <> 'leased'
    """
)


def insert_jobs(
    *,
    given: LiteralString = "",
    rows: LiteralString,
    queue: LiteralString = "queue",
    task: LiteralString = "task",
    max_attempts: LiteralString = "max_attempts",
    timeout_s: LiteralString = "timeout_s",
    id: LiteralString = "kernel.uuid7()",  # noqa: A002 - the name of the column
    payload: LiteralString = "NULL",
    priority: LiteralString = "0",
    run_at: LiteralString = "now()",
    unique_key: LiteralString = "NULL",
    turn_key: LiteralString = "NULL",
    turn_limit: LiteralString = "1",
    in_order: LiteralString = "false",
    schedule: LiteralString = "NULL",
    event_id: LiteralString = "NULL",
    event_version: LiteralString = "NULL",
    trace_context: LiteralString = "%(trace)s",
    errors: LiteralString = "NULL",
    attempt: LiteralString = "0",
    created_at: LiteralString = "now()",
    origin_id: LiteralString = "NULL",
    on_conflict: LiteralString = "",
    then: LiteralString = "SELECT count(*) FROM notified",
) -> LiteralString:
    """Return a statement that inserts a job for each row. Only COPY inserts jobs without it.

    `given` are tables of its WITH clause, `rows` is its FROM clause, and the columns are expressions over that. `then`
    can read `added`, with id, queue and state; it must read `notified`, which notifies the workers. Without `then` the
    statement is for a single job, whose id it returns, at two thirds of the cost.
    """
    columns = (id, queue, task, payload, priority, run_at, max_attempts, timeout_s, unique_key, turn_key, turn_limit)
    more = (in_order, schedule, event_id, event_version, trace_context, errors, attempt, created_at, origin_id)
    insert = " ".join(
        (
            """
            INSERT INTO kernel.jobs
                (id, queue, task, payload, priority, run_at, max_attempts, timeout_s, unique_key, turn_key, turn_limit,
                 in_order, schedule, event_id, event_version, trace_context, errors, attempt, created_at, origin_id,
                 state, rank)
            SELECT
            """,
            ", ".join(columns + more),
            ", CASE WHEN",
            run_at,
            "<= now() THEN 'ready' ELSE 'scheduled' END, kernel.job_rank(",
            run_at,
            ",",
            priority,
            ") FROM",
            rows,
            on_conflict,
        )
    )
    if not then:
        return (
            insert
            + """
            RETURNING id,
                CASE WHEN state = 'ready' THEN kernel.notify_after_commit('kernel_jobs', 'q' || queue)::text END
            """
        )
    added = """
            RETURNING id, queue, state
        ), notified AS (
            SELECT kernel.notify_after_commit('kernel_jobs', 'q' || queue)
            FROM (SELECT DISTINCT queue FROM added WHERE state = 'ready') q
        )
    """
    return "WITH " + given + " added AS (" + insert + added + then


def _insert_one(on_conflict: LiteralString = "") -> LiteralString:
    return insert_jobs(
        rows="(SELECT coalesce(%(at)s::timestamptz, now() + %(delay_s)s::float8 * interval '1 second') AS run_at) t",
        id="%(id)s",
        queue="%(queue)s",
        task="%(task)s",
        payload="%(payload)s::jsonb",
        priority="%(priority)s",
        run_at="run_at",
        max_attempts="%(max_attempts)s",
        timeout_s="%(timeout_s)s",
        unique_key="%(unique_key)s",
        turn_key="%(turn_key)s",
        turn_limit="%(turn_limit)s",
        in_order="%(in_order)s",
        on_conflict=on_conflict,
        then="",
    )


_INSERT_ONE = _insert_one()
_INSERT_NOW = insert_jobs(
    rows="(SELECT now() AS run_at) t",
    id="%(id)s",
    queue="%(queue)s",
    task="%(task)s",
    payload="%(payload)s::jsonb",
    priority="%(priority)s",
    run_at="run_at",
    max_attempts="%(max_attempts)s",
    timeout_s="%(timeout_s)s",
    then="",
)
_INSERT_UNIQUE: dict[str, LiteralString] = {"keep": _insert_one(KEEP_UNFINISHED), "replace": _insert_one(_REPLACE)}
_INSERT_UNIQUE["refuse"] = _INSERT_UNIQUE["keep"]

_INSERT_MANY = insert_jobs(
    given="""
    given AS (
        SELECT id, payload, now() + %(delay_s)s::float8 * interval '1 second' AS run_at
        FROM unnest(%(ids)s::uuid[], %(payloads)s::text[]) AS job (id, payload)
    ),
    """,
    rows="given",
    id="id",
    queue="%(queue)s",
    task="%(task)s",
    payload="payload::jsonb",
    priority="%(priority)s",
    run_at="run_at",
    max_attempts="%(max_attempts)s",
    timeout_s="%(timeout_s)s",
)

_COPY = """
    COPY kernel.jobs (id, queue, task, payload, state, priority, run_at, rank, max_attempts, timeout_s, trace_context)
    FROM STDIN
"""


@dataclass(frozen=True, slots=True)
class Queue:
    """Enqueues jobs and publishes events.

    With a transaction, a method takes effect when the transaction commits; with the database, at once.
    """

    events: EventTransport

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
        """Enqueue a job; return its id. Raises Invalid for an invalid payload or option.

        The job is due after `delay_s` seconds or at `at`. A point of `priority` (-1000 to 1000) outweighs ten seconds
        of waiting. A `unique_key` allows one unfinished job of the task: `on_conflict` keeps that job and returns its
        id, replaces it, or raises JobExists, which `replace` also does while that job is running. Jobs of a `group_key`
        run one at a time in the order of enqueueing, retries included. For a `concurrency_key` the task limits the
        concurrent jobs. A job can have only one of these two keys. Safe to repeat with a `unique_key`.
        """
        if group_key is not None and concurrency_key is not None:
            raise Invalid("a job can have a group_key or a concurrency_key, not both")
        if on_conflict not in _INSERT_UNIQUE:
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
            "priority": priority,
            "max_attempts": max_attempts,
            "timeout_s": timeout_s,
        }
        is_plain = at is None and delay_s == 0 and unique_key is None and turn_key is None
        if not is_plain:
            wanted |= {"at": at, "delay_s": delay_s, "unique_key": unique_key, "turn_key": turn_key}
            wanted |= {"turn_limit": task.concurrency, "in_order": group_key is not None}
        with span(f"enqueue {task.name}", SpanKind.PRODUCER):
            wanted["trace"] = current_context()
            if unique_key is not None:
                return await self._unique(db, wanted, on_conflict)
            await db.run(_INSERT_NOW if is_plain else _INSERT_ONE, wanted)
            return job_id

    async def _unique(self, db: Queries, wanted: dict[str, Any], on_conflict: str) -> UUID:
        for _ in range(3):  # the conflicting job may finish between the two statements
            row = await db.one(_INSERT_UNIQUE[on_conflict], wanted)
            if row is not None:
                return row[0]
            found = await db.one(
                "SELECT id FROM kernel.jobs WHERE task = %(task)s AND unique_key = %(unique_key)s", wanted
            )
            if found is not None and on_conflict == "keep":
                return found[0]
            if found is not None:
                raise JobExists(f"there is an unfinished job of {wanted['task']} with this unique key: {found[0]}")
        raise JobExists(f"concurrent jobs of {wanted['task']} have this unique key")

    async def enqueue_many(
        self, db: Queries, task: Task[Any], payloads: Iterable[object], *, delay_s: float = 0, priority: int = 0
    ) -> int:
        """Enqueue a job for each payload; return their number. Raises Invalid for an invalid payload.

        Large numbers are copied (COPY) in batches of 10,000. It is atomic only in a transaction.
        """
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
        # unique ranks, because a worker that continues from a rank reads all jobs of that rank again
        rows = (
            (id_, *before, text, state, job["priority"], run_at, rank + n, *after)
            for n, (id_, text) in enumerate(chunk, place)
        )
        await db.copy(_COPY, rows)
        if state == "ready":
            await db.run("SELECT kernel.notify_after_commit('kernel_jobs', 'q' || %(queue)s)", job)

    async def publish(self, db: Queries, *events: Event) -> None:
        """Append events to the log and deliver them to their subscribers. Raises Invalid for an invalid event."""
        ids = sorted(uuid7() for _ in events)  # the log keeps their order
        published = [
            PublishedEvent(id_, event.event_type, version_of(event), encode(type(event), event))
            for id_, event in zip(ids, events, strict=True)
        ]
        with span(f"publish {' '.join(sorted({event.type for event in published}))}", SpanKind.PRODUCER):
            await self.events.publish(db, published)


def _payload(task: Task[Any], payload: object) -> str | None:
    if task.payload is None:
        if payload is not None:
            raise Invalid(f"{task.name} takes no payload")
        return None
    return encode(task.payload, payload)


def _check_ranges(**options: object) -> None:
    for option, value in options.items():
        if said := out_of_range(option, value):
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
