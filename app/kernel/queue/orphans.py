"""Orphans: schedules, subscriptions, jobs and dead letters that no module declares."""

from dataclasses import astuple, dataclass
from typing import ClassVar, Literal

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, Transaction
from app.kernel.queue.jobs import DeclaredTasks

_ORPHANS = """
    SELECT 'schedule' AS kind, name, 1 FROM kernel.schedules WHERE name <> ALL(%(schedules)s)
    UNION ALL
    SELECT 'subscription', subscriber, 1 FROM kernel.subscriptions WHERE subscriber <> ALL(%(tasks)s)
    UNION ALL
    SELECT 'job', task, count(*) FROM kernel.jobs WHERE task <> ALL(%(tasks)s) GROUP BY task
    UNION ALL
    SELECT 'dead letter', task, count(*) FROM kernel.dead_letters WHERE task <> ALL(%(tasks)s) GROUP BY task
    ORDER BY kind, name
"""

_REMOVE = """
    WITH s AS (
        DELETE FROM kernel.schedules WHERE name <> ALL(%(schedules)s) RETURNING 1
    ), u AS (
        DELETE FROM kernel.subscriptions WHERE subscriber <> ALL(%(tasks)s) RETURNING 1
    ), j AS (
        DELETE FROM kernel.jobs WHERE lease_token IS NULL AND id IN (
            SELECT id FROM kernel.jobs WHERE task <> ALL(%(tasks)s) AND lease_token IS NULL LIMIT %(most)s
        ) RETURNING turn_key
    ), locked AS MATERIALIZED (
        -- before the triggers lock the turns of these jobs one by one, in any order
        SELECT kernel.lock_turns(array_agg(turn_key)) FROM j HAVING count(turn_key) > 1
    ), d AS (
        DELETE FROM kernel.dead_letters WHERE id IN (
            SELECT id FROM kernel.dead_letters WHERE task <> ALL(%(tasks)s) LIMIT %(most)s
        ) RETURNING 1
    )
    SELECT (SELECT count(*) FROM s), (SELECT count(*) FROM u), (SELECT count(*) FROM j), (SELECT count(*) FROM d)
    FROM (SELECT count(*) FROM locked) l
"""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A schedule or subscription that no module declares, or jobs or dead letters of an undeclared task."""

    kind: Literal["schedule", "subscription", "job", "dead letter"]
    name: str
    count: int

    columns: ClassVar[Columns] = (Column("kind"), Column("name"), Column("count"))


@dataclass(frozen=True, slots=True)
class RemovedOrphans:
    """Numbers of removed orphans."""

    schedules: int = 0
    subscriptions: int = 0
    jobs: int = 0
    dead_letters: int = 0

    def __add__(self, other: "RemovedOrphans") -> "RemovedOrphans":
        return RemovedOrphans(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return (
            f"removed {self.schedules} schedules, {self.subscriptions} subscriptions, {self.jobs} jobs"
            f" and {self.dead_letters} dead letters"
        )


@dataclass(frozen=True, slots=True)
class OrphanAdmin:
    """Orphans among the tables of the queue."""

    declared: DeclaredTasks

    async def all(self, db: Queries) -> list[Orphan]:
        """Return the orphans by kind and name."""
        return [Orphan(*row) for row in await db.all(_ORPHANS, self._given())]

    async def remove(self, tx: Transaction, most: int) -> RemovedOrphans:
        """Remove schedules and subscriptions, and at most so many jobs and dead letters. Running jobs stay."""
        row = await tx.one(_REMOVE, {**self._given(), "most": most})
        assert row is not None
        return RemovedOrphans(*row)

    def _given(self) -> dict[str, list[str]]:
        return {"schedules": list(self.declared.schedules), "tasks": list(self.declared.names)}
