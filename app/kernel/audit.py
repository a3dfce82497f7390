"""The audit trail: who did what to whom, from where, with which outcome. Append only."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from opentelemetry import trace

from app.kernel.callers import Caller
from app.kernel.db import Database, Queries
from app.kernel.errors import Denied
from app.kernel.identifiers import uuid7
from app.kernel.text import storable, storable_tree

_ADD = """
    INSERT INTO kernel.audit
        (id, action, outcome, actor_id, session_id, target, details, address, user_agent, request_id, trace_id)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""

# The first one of a window is an entry, the others are counted there. Beyond so many entries, they have neither address
# nor actor.
_COUNT = """
    UPDATE kernel.audit SET count = count + 1, last_at = now()
    WHERE window_at = to_timestamp(floor(extract(epoch FROM now()) / %(window_s)s) * %(window_s)s)
      AND action = %(action)s AND outcome = %(outcome)s AND network = %(network)s
      AND coalesce(actor_id, '00000000-0000-0000-0000-000000000000')
        = coalesce(%(actor_id)s, '00000000-0000-0000-0000-000000000000'::uuid)
"""
_ADD_COUNTED = """
    WITH present AS (SELECT to_timestamp(floor(extract(epoch FROM now()) / %(window_s)s) * %(window_s)s) AS window_at),
         named AS (
             SELECT window_at, (
                 SELECT count(*) FROM (
                     SELECT FROM kernel.audit a WHERE a.window_at = present.window_at AND a.action = %(action)s
                     LIMIT %(most)s
                 ) entries
             ) < %(most)s AS is_named
             FROM present
         )
    INSERT INTO kernel.audit AS a
        (id, window_at, network, action, outcome, actor_id, session_id, address, user_agent, request_id, trace_id)
    SELECT %(id)s, window_at, CASE WHEN is_named THEN %(network)s ELSE '' END, %(action)s, %(outcome)s,
           CASE WHEN is_named THEN %(actor_id)s::uuid END, CASE WHEN is_named THEN %(session_id)s::uuid END,
           CASE WHEN is_named THEN %(address)s ELSE '' END, CASE WHEN is_named THEN %(user_agent)s ELSE '' END,
           %(request_id)s, %(trace_id)s
    FROM named
    ON CONFLICT (window_at, action, outcome, network, coalesce(actor_id, '00000000-0000-0000-0000-000000000000'))
        WHERE window_at IS NOT NULL
    DO UPDATE SET count = a.count + 1, last_at = now()
"""
_WINDOW_S = 900
_MOST_NAMED = 250

_PAGE = """
    SELECT id, at, action, outcome, actor_id, session_id, target, details, address, user_agent, request_id, trace_id,
           count, coalesce(last_at, at)
    FROM kernel.audit
    WHERE (%(after)s::uuid IS NULL OR id < %(after)s)
      AND (%(actor_id)s::uuid IS NULL OR actor_id = %(actor_id)s)
      AND (%(target)s::text IS NULL OR target = %(target)s)
      AND (%(action)s::text IS NULL OR action = %(action)s)
    ORDER BY id DESC
    LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """Who did what to whom, from where, with which outcome.

    A refusal that repeats within a quarter of an hour is one entry: the first one, how many, and when the last one was.
    """

    id: UUID
    at: datetime
    action: str
    outcome: str
    actor_id: UUID | None
    session_id: UUID | None
    target: str | None
    details: dict[str, Any]
    address: str
    user_agent: str
    request_id: str
    trace_id: str
    count: int
    last_at: datetime


@dataclass(frozen=True, slots=True)
class EntryFilters:
    """Which entries: all that are given must fit."""

    actor_id: UUID | None = None
    target: str | None = None
    action: str | None = None


@dataclass(frozen=True, slots=True)
class DenialLog:
    """Notes in the audit trail that somebody was denied an operation."""

    db: Database
    audit: "Audit"

    async def __call__(self, caller: Caller, operation_id: str) -> None:
        """Count it. Raises Unavailable."""
        await self.audit.refused(self.db, caller, operation_id, Denied.code)


@dataclass(frozen=True, slots=True)
class Audit:
    """Writes and reads the audit trail."""

    async def page(self, db: Queries, filters: EntryFilters, limit: int, after: UUID | None) -> list[Entry]:
        """Return entries that fit, newest first, those after one."""
        given = {"actor_id": filters.actor_id, "target": filters.target, "action": filters.action}
        return [Entry(*row) for row in await db.all(_PAGE, {**given, "limit": limit, "after": after})]

    async def record(
        self,
        db: Queries,
        caller: Caller,
        action: str,
        *,
        outcome: str = "done",
        target: UUID | str | None = None,
        **details: str | int | bool | list[str] | None,
    ) -> None:
        """Add an entry. Give it the transaction of the act, so that both are there or neither; a refusal gets its own.

        `details` never hold a secret. `outcome` is `done` or the code of the refusal.
        """
        context = trace.get_current_span().get_span_context()
        await db.run(
            _ADD,
            (
                uuid7(),
                action,
                outcome,
                caller.actor_id,
                caller.session_id,
                None if target is None else storable(str(target)),
                json.dumps(storable_tree(details)),
                caller.origin.address,
                storable(caller.origin.user_agent),
                caller.origin.request_id,
                trace.format_trace_id(context.trace_id),
            ),
        )

    async def refused(self, db: Queries, caller: Caller, action: str, outcome: str) -> None:
        """Note a refusal: one entry for each address (IPv6: /64), actor, action and outcome in a quarter of an hour.

        Whoever is refused cannot fill the trail: an action has at most 250 such entries in that time. What comes from
        further addresses is counted in one that names none.
        """
        context = trace.get_current_span().get_span_context()
        about = {
            "id": uuid7(),
            "action": action,
            "outcome": outcome,
            "actor_id": caller.actor_id,
            "session_id": caller.session_id,
            "address": caller.origin.address,
            "network": caller.origin.limited,
            "user_agent": storable(caller.origin.user_agent),
            "request_id": caller.origin.request_id,
            "trace_id": trace.format_trace_id(context.trace_id),
            "window_s": _WINDOW_S,
            "most": _MOST_NAMED,
        }
        if not await db.run(_COUNT, about):
            await db.run(_ADD_COUNTED, about)
