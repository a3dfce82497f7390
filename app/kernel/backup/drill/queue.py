"""Checks of the queue: what holds in every committed state of its tables."""

from typing import Any, LiteralString

import psycopg

from app.kernel.backup.drill import Found

_TABLES: LiteralString = "SELECT to_regclass('kernel.jobs') IS NOT NULL AND to_regclass('kernel.schedules') IS NOT NULL"
_COUNT: LiteralString = """
    SELECT (SELECT count(*) FROM kernel.jobs), (SELECT count(*) FROM kernel.dead_letters),
        (SELECT count(*) FROM kernel.schedules)
"""
# each returns the number of violations, and one of them
INVARIANTS: dict[str, LiteralString] = {
    "jobs are leased without a whole lease, or have one without being leased": """
        SELECT count(*), min(id::text) FROM kernel.jobs
        WHERE num_nonnulls(lease_token, leased_until, leased_by) <> CASE WHEN state = 'leased' THEN 3 ELSE 0 END
    """,
    "jobs that have ended are still unfinished": """
        SELECT count(*), min(id::text) FROM kernel.jobs j
        WHERE EXISTS (SELECT FROM kernel.finished_jobs o WHERE o.id = j.id)
           OR EXISTS (SELECT FROM kernel.dead_letters o WHERE o.id = j.id)
           OR EXISTS (SELECT FROM kernel.purged_dead_letters o WHERE o.id = j.id)
    """,
    "dead letters are finished jobs": """
        SELECT count(*), min(id::text) FROM kernel.dead_letters d
        WHERE EXISTS (SELECT FROM kernel.finished_jobs o WHERE o.id = d.id)
    """,
    "unique keys have more than one unfinished job": """
        SELECT count(*), min(unique_key) FROM (
            SELECT unique_key FROM kernel.jobs WHERE unique_key IS NOT NULL
            GROUP BY task, unique_key HAVING count(*) > 1
        ) twice
    """,
    "ticks of schedules have more than one job": """
        SELECT count(*), min(unique_key) FROM (
            SELECT unique_key FROM (
                SELECT schedule, unique_key, origin_id FROM kernel.jobs
                UNION ALL SELECT schedule, unique_key, origin_id FROM kernel.finished_jobs
                UNION ALL SELECT schedule, unique_key, origin_id FROM kernel.dead_letters
                UNION ALL SELECT schedule, unique_key, origin_id FROM kernel.purged_dead_letters
            ) jobs
            WHERE schedule IS NOT NULL AND unique_key IS NOT NULL AND origin_id IS NULL
            GROUP BY schedule, unique_key HAVING count(*) > 1
        ) twice
    """,
    "turns have more leased jobs than are allowed at once": """
        SELECT count(*), min(turn_key) FROM (
            SELECT turn_key FROM kernel.jobs WHERE turn_key IS NOT NULL AND state = 'leased'
            GROUP BY turn_key HAVING count(*) > max(CASE WHEN in_order THEN 1 ELSE turn_limit END)
        ) crowded
    """,
    "jobs wait for a turn without having one": """
        SELECT count(*), min(id::text) FROM kernel.jobs WHERE state = 'waiting' AND turn_key IS NULL
    """,
    "schedules have fired at or after their next tick": """
        SELECT count(*), min(name) FROM kernel.schedules WHERE last_fire_at >= next_fire_at
    """,
}


def queue(connection: psycopg.Connection[Any]) -> Found:
    """Check the invariants of the queue."""
    row = connection.execute(_TABLES).fetchone()
    if row != (True,):
        return Found(problems=("the tables of the queue do not exist",))
    problems: list[str] = []
    notes: list[str] = []
    for what, statement in INVARIANTS.items():
        try:
            count, example = connection.execute(statement).fetchone() or (0, "")
        except psycopg.errors.QueryCanceled:
            notes.append(f"not checked, as that takes too long: {what}")
            continue
        if count:
            problems.append(f"{count:,} {what}, such as {example}")
    jobs, dead, schedules = connection.execute(_COUNT).fetchone() or (0, 0, 0)
    summary = f"{len(INVARIANTS)} invariants of {jobs:,} jobs, {dead:,} dead letters, {schedules:,} schedules"
    return Found(summary, tuple(problems), tuple(notes))
