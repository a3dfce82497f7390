"""Canaries: retries of dead letters that begin with one, and go on at a rate when it has succeeded."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, LiteralString
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction
from app.kernel.identifiers import uuid7
from app.kernel.queue.dead_letters import DeadLetterAdmin, DeadLetterFilters, revive, some
from app.kernel.telemetry.traces import current_context

CanaryState = Literal["trying", "releasing", "stopped", "done", "failed"]
STEP_S = 2.0
"""Seconds between two steps while there is progress."""
_LONGEST_STEP_S = 30.0
_MOST_UNFINISHED = 1000
_LONGEST_SILENCE = timedelta(days=1)
_FIRST_TRIES = 100

_COLUMNS: LiteralString = """
    id, queue, task, cause, died_before, rate_per_s, max_failed, started_by, state, reason, letter_id, last_id, total,
    released, succeeded, failed, cancelled, conflicts, is_all_released, started_at, released_at, progress_at, ended_at
"""
# a queue that is paused holds up its letters, and the first one that of the steps
_PAUSED: LiteralString = """
    , CASE WHEN ended_at IS NULL THEN coalesce(
        (SELECT q.name FROM kernel.canary_letters l JOIN kernel.jobs j ON j.id = l.letter_id
         JOIN kernel.queues q ON q.name = j.queue
         WHERE l.canary_id = c.id AND kernel.is_paused(q.paused_at, q.paused_until) LIMIT 1),
        (SELECT name FROM kernel.queues WHERE name = %(steps_in)s AND kernel.is_paused(paused_at, paused_until))
    ) END
    FROM kernel.canaries c
"""
_PAGE: LiteralString = (
    "SELECT" + _COLUMNS + _PAUSED + "WHERE %(after)s::uuid IS NULL OR id < %(after)s ORDER BY id DESC LIMIT %(limit)s"
)
_GET: LiteralString = "SELECT" + _COLUMNS + _PAUSED + "WHERE id = %(id)s"
_LOCK = "SELECT now() FROM kernel.canaries WHERE id = %s FOR UPDATE"

_ADD = """
    INSERT INTO kernel.canaries
        (id, queue, task, cause, died_before, rate_per_s, max_failed, started_by, letter_id, last_id, total)
    SELECT %(id)s, %(queue)s, %(task)s, %(cause)s, least(%(died_before)s::timestamptz, now()), %(rate_per_s)s,
        %(max_failed)s, %(started_by)s, %(id)s, %(id)s, 0
    ON CONFLICT (coalesce(queue, ''), coalesce(task, ''), coalesce(cause, '')) WHERE ended_at IS NULL DO NOTHING
    RETURNING died_before
"""
_RUNNING = """
    SELECT id FROM kernel.canaries
    WHERE ended_at IS NULL AND coalesce(queue, '') = coalesce(%(queue)s, '')
      AND coalesce(task, '') = coalesce(%(task)s, '') AND coalesce(cause, '') = coalesce(%(cause)s, '')
"""
_BEGUN = "UPDATE kernel.canaries SET letter_id = %(letter)s, last_id = %(letter)s, total = %(total)s WHERE id = %(id)s"

_TRACKED: LiteralString = """
    , tracked AS (INSERT INTO kernel.canary_letters (canary_id, letter_id) SELECT %(canary)s, id FROM added)
"""
# the first one has a single attempt, so that its outcome is known soon
_LAST_ATTEMPT: LiteralString = "max_attempts - 1"

# Of the released letters that are no jobs any more: the row of each has moved to one of three tables, in one snapshot.
_OUTCOMES = """
    WITH unfinished AS (
        SELECT l.letter_id, j.attempt FROM kernel.canary_letters l JOIN kernel.jobs j ON j.id = l.letter_id
        WHERE l.canary_id = %(id)s
    ), ended AS (
        DELETE FROM kernel.canary_letters
        WHERE canary_id = %(id)s AND letter_id NOT IN (SELECT letter_id FROM unfinished)
        RETURNING letter_id
    ), fates AS (
        SELECT coalesce(
            (SELECT 'dead' FROM kernel.dead_letters WHERE id = letter_id),
            (SELECT 'dead' FROM kernel.purged_dead_letters WHERE id = letter_id),
            (SELECT outcome FROM kernel.finished_jobs
             WHERE id = letter_id AND finished_at > %(since)s::timestamptz - interval '1 hour' LIMIT 1),
            'cancelled'
        ) AS fate
        FROM ended
    )
    SELECT (SELECT count(*) FROM unfinished), (SELECT count(*) FROM unfinished WHERE attempt > 0),
        count(*) FILTER (WHERE fate = 'done'), count(*) FILTER (WHERE fate = 'dead'),
        count(*) FILTER (WHERE fate = 'cancelled')
    FROM fates
"""
_REASON = "SELECT reason FROM kernel.dead_letters WHERE id = %s"

_WRITE = """
    UPDATE kernel.canaries
    SET state = %(state)s, reason = %(reason)s, last_id = %(last_id)s, released = released + %(released)s,
        succeeded = succeeded + %(succeeded)s, failed = failed + %(failed)s, cancelled = cancelled + %(cancelled)s,
        conflicts = conflicts + %(conflicts)s, is_all_released = %(is_all_released)s, released_at = %(released_at)s,
        progress_at = CASE WHEN %(has_moved)s THEN now() ELSE progress_at END,
        ended_at = CASE WHEN %(state)s NOT IN ('trying', 'releasing') THEN now() END
    WHERE id = %(id)s
"""
_STOP = """
    UPDATE kernel.canaries SET state = 'stopped', reason = %(reason)s, ended_at = now()
    WHERE id = %(id)s AND ended_at IS NULL
"""
_FORGET = "DELETE FROM kernel.canary_letters WHERE canary_id = %s"


@dataclass(frozen=True, slots=True)
class Canary:
    """A retry of the dead letters that matched its filters when it was started.

    The first letter is tried with one attempt; when it has succeeded, the others are released with all their attempts.
    `failed` letters are dead again; those that have only failed an attempt are not counted here. `conflicts` stay dead
    letters because unfinished jobs have their unique keys. `paused_queue` is a paused queue that holds it up.
    """

    id: UUID
    queue: str | None
    task: str | None
    cause: str | None
    died_before: datetime
    rate_per_s: float
    max_failed: int
    started_by: str
    state: CanaryState
    reason: str
    letter_id: UUID
    last_id: UUID
    total: int
    released: int
    succeeded: int
    failed: int
    cancelled: int
    conflicts: int
    is_all_released: bool
    started_at: datetime
    released_at: datetime
    progress_at: datetime
    ended_at: datetime | None
    paused_queue: str | None

    columns: ClassVar[Columns] = (
        Column("canary", "id"),
        Column("state", is_state=True),
        Column("task", lambda canary: canary.task or "all"),
        Column("queue", lambda canary: canary.queue or "all", extra=True),
        Column("released", lambda canary: f"{canary.released}/{canary.total}"),
        Column("succeeded"),
        Column("failed"),
        Column("rate", lambda canary: f"{canary.rate_per_s:g}/s", extra=True),
        Column("started at"),
        Column("reason", extra=True),
    )

    @property
    def filters(self) -> DeadLetterFilters:
        """The filters of the dead letters."""
        return DeadLetterFilters(self.queue, self.task, self.cause, self.died_before)


@dataclass(slots=True)
class _Step:
    """What a step of a canary changes."""

    state: CanaryState
    last_id: UUID
    is_all_released: bool
    released_at: datetime
    reason: str = ""
    released: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    conflicts: int = 0

    @property
    def has_moved(self) -> bool:
        return any((self.released, self.succeeded, self.failed, self.cancelled, self.conflicts))


def allowance(rate_per_s: float, elapsed_s: float, unfinished: int) -> tuple[int, float]:
    """Return how many letters may be released now, and how many of the elapsed seconds they do not use up.

    After a delay it does not catch up, beyond two steps. At most a thousand released letters are unfinished.
    """
    elapsed_s = min(max(elapsed_s, 0), max(2 * STEP_S, 1 / rate_per_s))
    by_rate = math.floor(rate_per_s * elapsed_s + 1e-9)
    most = max(0, min(by_rate, _MOST_UNFINISHED - unfinished))
    return most, max(0.0, elapsed_s - most / rate_per_s) if most == by_rate else 0.0


@dataclass(frozen=True, slots=True)
class CanaryAdmin:
    """Canaries in `kernel.canaries`."""

    letters: DeadLetterAdmin

    async def page(self, db: Queries, limit: int, after: UUID | None, steps_in: str) -> list[Canary]:
        """Return a page of canaries, newest first. Their steps are jobs of the queue `steps_in`."""
        rows = await db.all(_PAGE, {"limit": limit, "after": after, "steps_in": steps_in})
        return [Canary(*row) for row in rows]

    async def get(self, db: Queries, canary_id: UUID, steps_in: str) -> Canary | None:
        """Return a canary."""
        row = await db.one(_GET, {"id": canary_id, "steps_in": steps_in})
        return Canary(*row) if row else None

    async def running(self, db: Queries, filters: DeadLetterFilters) -> UUID | None:
        """Return the running canary of these filters, whatever its age filter."""
        row = await db.one(_RUNNING, filters.given())
        return row[0] if row else None

    async def start(
        self, tx: Transaction, filters: DeadLetterFilters, rate_per_s: float, max_failed: int, started_by: str
    ) -> UUID | None:
        """Start a canary and retry its first letter; return its id, or None if one with these filters runs.

        Its `total` is 0 if no letter can be retried: then roll back.
        """
        canary_id = uuid7()
        given = {"id": canary_id, "rate_per_s": rate_per_s, "max_failed": max_failed, "started_by": started_by}
        row = await tx.one(_ADD, {**given, **filters.given()})
        if row is None:
            return None
        filters = DeadLetterFilters(filters.queue, filters.task, filters.cause, row[0])
        total, after = await self.letters.count(tx, filters), None
        for _ in range(_FIRST_TRIES):  # letters whose unique keys are taken stay
            seen, changed, last = await self._release(tx, canary_id, filters, 1, after, _LAST_ATTEMPT)
            if changed:
                await tx.run(_BEGUN, {"id": canary_id, "letter": last, "total": total})
            if changed or not seen:
                break
            after = last
        return canary_id

    async def stop(self, tx: Transaction, canary_id: UUID, reason: str) -> bool:
        """Stop a canary: nothing more is released. Return whether it was running."""
        stopped = await tx.run(_STOP, {"id": canary_id, "reason": reason}) == 1
        await tx.run(_FORGET, (canary_id,))
        return stopped

    async def step(self, tx: Transaction, canary_id: UUID, steps_in: str) -> float | None:
        """Move a canary on; return the seconds until the next step, or None at its end. Safe to repeat."""
        row = await tx.one(_LOCK, (canary_id,))
        canary = await self.get(tx, canary_id, steps_in)
        if row is None or canary is None or canary.ended_at is not None:
            return None
        now: datetime = row[0]
        found = await tx.one(_OUTCOMES, {"id": canary_id, "since": canary.started_at})
        unfinished, failing, succeeded, failed, cancelled = found or (0, 0, 0, 0, 0)
        step = _Step(canary.state, canary.last_id, canary.is_all_released, canary.released_at)
        step.succeeded, step.failed, step.cancelled = succeeded, failed, cancelled
        if step.state == "trying":
            await self._tried(tx, canary, step, now)
        if step.state == "releasing":
            await self._go_on(tx, canary, step, now, unfinished, failing)
        silent_for = now - (now if step.has_moved else canary.progress_at)
        if step.state in ("trying", "releasing") and silent_for > _LONGEST_SILENCE:
            step.state, step.reason = "stopped", "nothing was released and nothing ended for a day"
        changes = {name: getattr(step, name) for name in _Step.__dataclass_fields__}
        await tx.run(_WRITE, {**changes, "has_moved": step.has_moved, "id": canary_id})
        if step.state not in ("trying", "releasing"):
            await tx.run(_FORGET, (canary_id,))
            return None
        is_releasing = step.state == "releasing" and not step.is_all_released
        waits_for = max(STEP_S, 1 / canary.rate_per_s) if is_releasing else STEP_S
        return min(max(waits_for, silent_for.total_seconds() / 5), _LONGEST_STEP_S)

    async def _tried(self, tx: Transaction, canary: Canary, step: _Step, now: datetime) -> None:
        """Decide what follows from the first letter."""
        if step.succeeded:
            step.state, step.released_at = "releasing", now
        elif step.failed:
            row = await tx.one(_REASON, (canary.letter_id,))
            step.state, step.reason = "failed", f"the first letter is dead again: {row[0] if row else 'and purged'}"
        elif step.cancelled:
            step.state, step.reason = "stopped", "the first letter was cancelled or removed"

    async def _go_on(
        self, tx: Transaction, canary: Canary, step: _Step, now: datetime, unfinished: int, failing: int
    ) -> None:
        """Release letters at the rate, unless too many fail again."""
        failed = canary.failed + step.failed + failing
        if failed > canary.max_failed:
            step.state = "failed"
            step.reason = (
                f"{failed} of {canary.released} released letters failed again; at most {canary.max_failed} may"
            )
            return
        if not step.is_all_released:
            elapsed_s = (now - step.released_at).total_seconds()
            most, left_s = allowance(canary.rate_per_s, elapsed_s, unfinished)
            if most:
                seen, step.released, last = await self._release(tx, canary.id, canary.filters, most, canary.last_id)
                step.conflicts = seen - step.released
                step.last_id = last or step.last_id
                step.is_all_released = seen < most
                step.released_at = now - timedelta(seconds=left_s)
        if step.is_all_released and not unfinished and not step.released:
            step.state = "done"

    async def _release(
        self,
        tx: Transaction,
        canary_id: UUID,
        filters: DeadLetterFilters,
        most: int,
        after: UUID | None,
        attempt: LiteralString = "0",
    ) -> tuple[int, int, UUID | None]:
        """Turn the next letters into jobs; return how many were seen and released, and the last one."""
        given: dict[str, Any] = {**filters.given(), "limit": most, "after": after, "canary": canary_id}
        sql = revive(some(filters, after), attempt, _TRACKED)
        row = await tx.one(sql, {**given, "trace": current_context()})
        return (row[0], row[1], row[2]) if row else (0, 0, None)
