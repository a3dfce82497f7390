"""The SQL of a worker.

Every statement that ends a lease has its token (a fencing token), so a worker that was frozen past its lease changes
nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app.kernel.db import Queries
from app.kernel.identifiers import uuid7
from app.kernel.queue.worker import Job
from app.kernel.text import storable

ANY_RANK = -(2**63)
_MOST_RESCUES = 10  # such a job probably kills its worker
KILLED = f"its worker died {_MOST_RESCUES} times while it had the job"
_ERRORS_KEPT = 20
_TURN_AGAIN_S = 0.002
_LONGEST_ERROR = 2000

_FETCH = """
    SELECT current_setting('kernel.fetch_again', true),
        (SELECT concurrency IS NOT NULL FROM kernel.queues WHERE name = %(queue)s),
        id::text, task, payload, attempt, max_attempts, timeout_s, event_id::text, event_version, trace_context, rank
    FROM (VALUES (1)) AS one LEFT JOIN kernel.fetch_jobs(
        %(queue)s, %(token)s, %(worker)s, %(lease_s)s, %(most)s, %(from_rank)s
    ) ON true
    ORDER BY rank
"""

_PROMOTE = """
    WITH due AS (
        UPDATE kernel.jobs SET state = 'ready' WHERE id IN (
            SELECT id FROM kernel.jobs WHERE state = 'scheduled' AND run_at <= now()
            ORDER BY run_at LIMIT 1000 FOR UPDATE SKIP LOCKED
        )
        RETURNING queue
    ), notified AS (
        SELECT queue, pg_notify('kernel_jobs', 'q' || queue) FROM (SELECT DISTINCT queue FROM due) q
    )
    SELECT (SELECT count(*) FROM due), (SELECT count(*) FROM notified),
        (SELECT extract(epoch FROM min(run_at) - now())::float8 FROM kernel.jobs
         WHERE state = 'scheduled' AND run_at > now())
"""

# `locked`: before the triggers lock the turns of the ended jobs one by one, in any order
_FINISH = """
    WITH ended AS (
        DELETE FROM kernel.jobs
        WHERE id = ANY(%(ids)s::uuid[])
          AND (id, lease_token) IN (SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[]))
        RETURNING id, queue, task, payload, attempt, schedule, event_id, event_version, unique_key, turn_key,
            trace_context, errors, created_at, origin_id
    ),
    locked AS MATERIALIZED (SELECT kernel.lock_turns(array_agg(turn_key)) FROM ended HAVING count(turn_key) > 1)
    INSERT INTO kernel.finished_jobs
        (id, queue, task, payload, outcome, attempt, schedule, event_id, event_version, unique_key, turn_key,
         trace_context, errors, created_at, origin_id, finished_at)
    SELECT id, queue, task, payload, %(outcome)s, attempt + 1, schedule, event_id, event_version, unique_key, turn_key,
        trace_context, errors, created_at, origin_id, clock_timestamp()
    FROM ended WHERE (SELECT count(*) FROM locked) >= 0
"""

_POSTPONE = """
    UPDATE kernel.jobs
    SET state = 'scheduled', attempt = attempt + %(counts)s, run_at = now() + %(delay_s)s * interval '1 second',
        rank = kernel.job_rank(now() + %(delay_s)s * interval '1 second', priority),
        errors = CASE WHEN %(error)s::jsonb IS NULL THEN errors ELSE jsonb_path_query_array(
            %(error)s::jsonb || coalesce(errors, '[]'), '$[0 to $newest]',
            jsonb_build_object('newest', %(kept)s::integer - 1)
        ) END,
        lease_token = NULL, leased_until = NULL, leased_by = NULL
    WHERE id = %(id)s AND lease_token = %(token)s
"""

_BURY = """
    locked AS MATERIALIZED (SELECT kernel.lock_turns(array_agg(turn_key)) FROM ended HAVING count(turn_key) > 1)
    INSERT INTO kernel.dead_letters
        (id, queue, task, payload, reason, priority, attempt, max_attempts, timeout_s, unique_key, turn_key, turn_limit,
         in_order, schedule, event_id, event_version, trace_context, errors, created_at, cause, origin_id)
    SELECT id, queue, task, payload, %(reason)s, priority, attempt + %(counts)s, max_attempts, timeout_s, unique_key,
        turn_key, turn_limit, in_order, schedule, event_id, event_version, trace_context,
        CASE WHEN %(error)s::jsonb IS NULL THEN errors ELSE %(error)s::jsonb || coalesce(errors, '[]') END, created_at,
        coalesce(%(cause)s, kernel.cause_of(%(reason)s)), origin_id
    FROM ended WHERE (SELECT count(*) FROM locked) >= 0
"""
_ENDED = """
    WITH ended AS (
        DELETE FROM kernel.jobs WHERE id = %(id)s AND lease_token = %(token)s RETURNING *
    ),
"""
_ENDED_BY_RESCUES = """
    WITH ended AS (
        DELETE FROM kernel.jobs WHERE id IN (
            SELECT id FROM kernel.jobs
            WHERE state = 'leased' AND leased_until < now() AND rescues >= %(most)s
            LIMIT 100 FOR UPDATE SKIP LOCKED
        )
        RETURNING *
    ),
"""

_RESCUE = """
    WITH ended AS (
        UPDATE kernel.jobs
        SET state = CASE WHEN rescues = 0 THEN 'ready' ELSE 'scheduled' END, rescues = rescues + 1,
            -- separate from the other jobs of its worker: one of them may have killed the worker
            run_at = now() + rescues * rescues * random() * interval '1 second',
            lease_token = NULL, leased_until = NULL, leased_by = NULL
        WHERE id IN (
            SELECT id FROM kernel.jobs WHERE state = 'leased' AND leased_until < now()
            LIMIT 1000 FOR UPDATE SKIP LOCKED
        )
        RETURNING queue, turn_key
    ),
    locked AS MATERIALIZED (SELECT kernel.lock_turns(array_agg(turn_key)) FROM ended HAVING count(turn_key) > 1),
    notified AS (
        SELECT pg_notify('kernel_jobs', 'q' || queue) FROM (SELECT DISTINCT queue FROM ended) q
    )
    SELECT (SELECT count(*) FROM ended), (SELECT count(*) FROM notified), (SELECT count(*) FROM locked)
"""

# the triggers of kernel.jobs pass turns on; this is for cases that they miss, such as a rolled back deletion
_WAKE_FORGOTTEN = """
    WITH woken AS (
        UPDATE kernel.jobs SET state = 'ready' WHERE state = 'waiting' AND id IN (
            SELECT DISTINCT ON (turn_key) w.id FROM kernel.jobs w
            WHERE w.turn_key IS NOT NULL AND w.state = 'waiting' AND NOT EXISTS (
                SELECT FROM kernel.jobs o WHERE o.turn_key = w.turn_key AND (
                    o.state IN ('leased', 'ready') OR o.in_order AND o.state = 'scheduled' AND o.attempt + o.rescues > 0
                )
            )
            ORDER BY turn_key, seq LIMIT 1000
        )
        RETURNING queue
    )
    SELECT pg_notify('kernel_jobs', 'q' || queue) FROM (SELECT DISTINCT queue FROM woken) q
"""

# a paused queue is not late
_DEPTH = """
    SELECT j.queue, j.state, count(*),
        CASE WHEN kernel.is_paused(q.paused_at, q.paused_until) THEN 0
        ELSE greatest(0, extract(epoch FROM now() - greatest(min(j.run_at), q.paused_until)))::float8 END
    FROM kernel.jobs j LEFT JOIN kernel.queues q ON q.name = j.queue
    GROUP BY j.queue, j.state, q.paused_at, q.paused_until
"""

_HAND_BACK = """
    WITH back AS (
        UPDATE kernel.jobs SET state = 'ready', lease_token = NULL, leased_until = NULL, leased_by = NULL
        WHERE id = ANY(%(ids)s::uuid[])
          AND (id, lease_token) IN (SELECT * FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[]))
        RETURNING queue
    )
    SELECT pg_notify('kernel_jobs', 'q' || queue) FROM (SELECT DISTINCT queue FROM back) q
"""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The result of a fetch, in the order of rank.

    `again_s`: time until the next fetch without a notification, because more jobs may be behind jobs that now wait for
    their turns, the turn of a job was being passed on, or the pause of the queue expires; None otherwise. `limited`:
    the queue has a concurrency limit, so that more jobs may be fetched when some have ended.
    """

    jobs: list[Job]
    again_s: float | None
    limited: bool


def again_s(given: str | None) -> float | None:
    """Return the time that `kernel.fetch_jobs` asks to wait: `now`, `soon`, or seconds until a pause expires."""
    if not given:
        return None
    if given == "now":
        return 0.0
    return _TURN_AGAIN_S if given == "soon" else float(given)


def lease_of(jobs: Sequence[Job]) -> dict[str, Any]:
    """Return ids and tokens as SQL parameters."""
    return {"ids": [job.id for job in jobs], "tokens": [job.token for job in jobs]}


@dataclass(frozen=True, slots=True)
class Leases:
    """Leases jobs, and ends leases. Each method raises Unavailable."""

    worker: str
    lease_s: float

    async def fetch(self, db: Queries, queue: str, most: int, from_rank: int, now: float) -> Fetched:
        """Lease the jobs of a queue with the lowest ranks from `from_rank` on."""
        token = str(uuid7())
        wanted = {"queue": queue, "token": token, "worker": self.worker, "lease_s": self.lease_s}
        rows = await db.all(_FETCH, {**wanted, "most": most, "from_rank": from_rank})
        again, limited = rows[0][0], bool(rows[0][1])
        jobs = [Job(*row[2:], token=token, renewed_at=now) for row in rows if row[2] is not None]
        return Fetched(jobs, again_s(again), limited)

    async def promote(self, db: Queries) -> tuple[int, float | None]:
        """Make due jobs ready; return their number and the seconds until the next one is due."""
        row = await db.one(_PROMOTE)
        return (row[0], row[2]) if row else (0, None)

    async def finish(self, db: Queries, jobs: Sequence[Job], outcome: str = "done") -> int:
        """Finish jobs; return the number of those whose lease was valid."""
        return await db.run(_FINISH, {**lease_of(jobs), "outcome": outcome})

    async def postpone(self, db: Queries, job: Job, delay_s: float, error: str | None) -> bool:
        """Reschedule a job, with an error as a failed attempt. Return whether its lease was valid."""
        return await db.run(_POSTPONE, self._failure(job, error) | {"delay_s": delay_s, "kept": _ERRORS_KEPT}) == 1

    async def die(self, db: Queries, job: Job, reason: str, error: str | None, cause: str | None) -> bool:
        """Turn a job into a dead letter. Return whether its lease was valid."""
        given = {"reason": storable(reason[:_LONGEST_ERROR]), "cause": cause}
        return await db.run(_ENDED + _BURY, self._failure(job, error) | given) == 1

    async def rescue(self, db: Queries) -> tuple[int, list[tuple[str, str]]]:
        """Release jobs with expired leases; return their number, and the id and task of new dead letters."""
        given = {"most": _MOST_RESCUES, "reason": KILLED, "counts": 0, "error": None, "cause": None}
        dead = await db.all(_ENDED_BY_RESCUES + _BURY + "RETURNING id::text, task", given)
        row = await db.one(_RESCUE)
        await db.run(_WAKE_FORGOTTEN)
        return (row[0] if row else 0), [(job_id, task) for job_id, task in dead]

    async def depth(self, db: Queries) -> list[tuple[str, str, int, float]]:
        """Return rows of queue, state, number of jobs and age of the oldest due job in seconds."""
        return [(queue, state, count, oldest_s) for queue, state, count, oldest_s in await db.all(_DEPTH)]

    async def hand_back(self, db: Queries, jobs: Sequence[Job]) -> None:
        """Release jobs to other workers without an attempt."""
        await db.run(_HAND_BACK, lease_of(jobs))

    @staticmethod
    def _failure(job: Job, error: str | None) -> dict[str, Any]:
        entry = None
        if error is not None:
            at = datetime.now(UTC).isoformat()
            entry = json.dumps([{"attempt": job.attempt + 1, "at": at, "error": storable(error[:_LONGEST_ERROR])}])
        return {"id": job.id, "token": job.token, "counts": 0 if error is None else 1, "error": entry}
