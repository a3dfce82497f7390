"""Everything with one trace id or request id, in the tables of the kernel."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal, LiteralString
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries, where

Kind = Literal["audit", "event", "job", "dead letter", "error"]
MOST = 500
"""Maximum number of entries of each kind."""

_TRACES = """
    SELECT DISTINCT trace_id FROM kernel.audit WHERE request_id = %(id)s AND trace_id <> ''
    UNION SELECT DISTINCT sample ->> 'trace_id' FROM kernel.errors, jsonb_array_elements(samples) sample
    WHERE jsonb_path_query_array(samples, '$[*].keyvalue() ? (@.key == "trace_id" || @.key == "request_id").value')
        @> to_jsonb(%(id)s::text)
      AND sample ->> 'request_id' = %(id)s AND sample ? 'trace_id'
    LIMIT 100
"""
_IN_TRACE: LiteralString = "trace_context IS NOT NULL AND split_part(trace_context, '-', 2) = ANY(%(traces)s)"
_ENTRIES: dict[LiteralString, LiteralString] = {
    """
    SELECT 'audit', id, at, action, outcome, target, request_id, trace_id, details FROM kernel.audit
    """: "request_id = %(id)s OR trace_id = ANY(%(traces)s)",
    """
    SELECT 'event', id, published_at, type, 'published', NULL, NULL, split_part(trace_context, '-', 2), '{}'::jsonb
    FROM kernel.events
    """: _IN_TRACE,
    """
    SELECT 'job', id, created_at, task, state, queue, NULL, split_part(trace_context, '-', 2),
        jsonb_strip_nulls(jsonb_build_object('attempt', attempt, 'run_at', run_at, 'event_id', event_id,
            'error', errors -> 0 ->> 'error'))
    FROM kernel.jobs
    """: _IN_TRACE,
    """
    SELECT 'job', id, created_at, task, outcome, queue, NULL, split_part(trace_context, '-', 2),
        jsonb_strip_nulls(jsonb_build_object('attempt', attempt, 'finished_at', finished_at, 'event_id', event_id,
            'error', errors -> 0 ->> 'error'))
    FROM kernel.finished_jobs
    """: _IN_TRACE,
    """
    SELECT 'dead letter', id, created_at, task, 'dead', queue, NULL, split_part(trace_context, '-', 2),
        jsonb_strip_nulls(jsonb_build_object('attempt', attempt, 'died_at', died_at, 'event_id', event_id,
            'error', reason))
    FROM kernel.dead_letters
    """: _IN_TRACE,
    """
    SELECT 'error', e.id, (sample ->> 'at')::timestamptz, e.type, e.state, e.culprit, sample ->> 'request_id',
        sample ->> 'trace_id', jsonb_build_object('title', e.title)
    FROM kernel.errors e, jsonb_array_elements(samples) sample
    """: """
    (jsonb_path_query_array(samples, '$[*].keyvalue() ? (@.key == "trace_id" || @.key == "request_id").value')
        ?| %(traces)s) AND (sample ->> 'request_id' = %(id)s OR sample ->> 'trace_id' = ANY(%(traces)s))
    """,
}
"""Statements, and their conditions."""


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """What happened at one moment of a trace: an audit entry, an event, a job, a dead letter or a captured error.

    `what` is the action, the event, the task or the type of the error; `target` is what it was done to, the queue, or
    where the error was raised.
    """

    at: datetime
    kind: Kind
    id: UUID
    what: str
    state: str
    target: str | None
    request_id: str | None
    trace_id: str | None
    details: dict[str, Any]

    columns: ClassVar[Columns] = (
        Column("at"),
        Column("kind"),
        Column("what"),
        Column("state", is_state=True),
        Column("target"),
        Column("id"),
    )


@dataclass(frozen=True, slots=True)
class TraceLog:
    """Finds the entries of a trace."""

    async def entries(self, db: Queries, wanted: str) -> tuple[list[str], list[TraceEntry]]:
        """Return the ids of traces, and what happened in them in order of time; of each kind at most 500 entries."""
        traces = sorted({wanted, *(found for (found,) in await db.all(_TRACES, {"id": wanted}))})
        given = {"id": wanted, "traces": traces, "most": MOST}
        found: list[TraceEntry] = []
        for sql, condition in _ENTRIES.items():
            rows = await db.all(sql + where(condition) + "LIMIT %(most)s", given)
            found += [TraceEntry(at, kind, key, *rest) for kind, key, at, *rest in rows]
        known = {entry.trace_id for entry in found if entry.trace_id}
        return sorted(known), sorted(found, key=lambda entry: (entry.at, entry.id))
