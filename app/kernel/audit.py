"""The append-only audit trail: actor, action, target, origin and outcome."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, LiteralString
from uuid import UUID

from annotated_types import Len
from opentelemetry import trace

from app.kernel.callers import Caller
from app.kernel.db import Database, Queries, where
from app.kernel.errors import Denied
from app.kernel.fields import Doc, Pattern
from app.kernel.identifiers import first_uuid7, uuid7
from app.kernel.text import storable, storable_tree

_ADD = """
    INSERT INTO kernel.audit
        (id, action, outcome, actor_id, session_id, target, details, address, user_agent, request_id, trace_id)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""

# The first refusal of a window adds an entry, repeated ones count there. Above a maximum of entries, refusals are
# counted in one without address and actor.
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
"""
_COUNTED = "SELECT count(*) FROM (SELECT FROM kernel.audit"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the audit trail.

    Repeated refusals within 15 minutes share an entry: the first one, the count, and the time of the last one.
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
    """Filters of entries, combined with AND."""

    actor_id: Annotated[UUID | None, Doc("Filter by the actor who acted.")] = None
    action: Annotated[Annotated[str, Len(1, 128)] | None, Doc("Filter by action.", "auth.login")] = None
    target: Annotated[
        Annotated[str, Len(1, 256)] | None, Doc("Filter by the target of the action: an id or a name.")
    ] = None
    outcome: Annotated[
        Annotated[str, Len(1, 128)] | None, Doc("Filter by outcome: done, or the code of a refusal.")
    ] = None
    address: Annotated[Annotated[str, Len(1, 256)] | None, Doc("Filter by address of the client, or os:USER@HOST.")] = (
        None
    )
    trace_id: Annotated[Annotated[str, Pattern("^[0-9a-f]{32}$")] | None, Doc("Filter by trace.")] = None
    from_: Annotated[datetime | None, Doc("Start of the period, such as 2026-11-22T10:00:00Z.")] = None
    to: Annotated[datetime | None, Doc("End of the period, excluded.")] = None


def entry(
    caller: Caller,
    action: str,
    *,
    outcome: str = "done",
    target: UUID | str | None = None,
    **details: str | int | bool | list[str] | None,
) -> tuple[LiteralString, tuple[object, ...]]:
    """Return the statement, with its parameters, that adds what `Audit.record` does, for another connection."""
    context = trace.get_current_span().get_span_context()
    return _ADD, (
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
    )


@dataclass(frozen=True, slots=True)
class DenialLog:
    """Records in the audit trail that a caller was denied an operation."""

    db: Database
    audit: "Audit"

    async def __call__(self, caller: Caller, operation_id: str) -> None:
        """Record the denial. Raises Unavailable."""
        await self.audit.refused(self.db, caller, operation_id, Denied.code)


@dataclass(frozen=True, slots=True)
class Audit:
    """Writes and reads the audit trail."""

    async def page(self, db: Queries, filters: EntryFilters, limit: int, after: UUID | None) -> list[Entry]:
        """Return matching entries, newest first, after an id."""
        sql = _PAGE + _matching(filters, "id < %(after)s" if after else "") + "ORDER BY id DESC LIMIT %(limit)s"
        return [Entry(*row) for row in await db.all(sql, {**_given(filters), "limit": limit, "after": after})]

    async def count(self, db: Queries, filters: EntryFilters, most: int) -> int:
        """Return the number of matching entries; it stops counting at `most`."""
        sql = _COUNTED + _matching(filters) + "LIMIT %(most)s) counted"
        row = await db.one(sql, {**_given(filters), "most": most})
        return row[0] if row else 0

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
        """Add an entry, in the transaction of the change; for a refusal, in a separate one.

        `details` must not hold a secret. `outcome` is `done` or the code of the refusal.
        """
        await db.run(*entry(caller, action, outcome=outcome, target=target, **details))

    async def refused(self, db: Queries, caller: Caller, action: str, outcome: str) -> None:
        """Record a refusal: one entry per address (IPv6: /64), actor, action and outcome in 15 minutes.

        An action has at most 250 such entries in that time; further ones are counted in an entry without an address.
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


_CLOCKS = timedelta(hours=1)


def _matching(filters: EntryFilters, after: LiteralString = "") -> LiteralString:
    # ids begin with a time, so that every index has the period; the clock of a host may differ from the database's
    return where(
        after,
        "actor_id = %(actor_id)s" if filters.actor_id else "",
        "action = %(action)s" if filters.action else "",
        "target = %(target)s" if filters.target else "",
        "outcome = %(outcome)s" if filters.outcome else "",
        "outcome <> 'done'" if filters.outcome not in (None, "done") else "",  # the condition of the index
        "address = %(address)s" if filters.address else "",
        "trace_id = %(trace_id)s" if filters.trace_id else "",
        "id >= %(first)s AND at >= %(from)s" if filters.from_ else "",
        "id < %(last)s AND at < %(to)s" if filters.to else "",
    )


def _given(filters: EntryFilters) -> dict[str, Any]:
    return {
        "actor_id": filters.actor_id,
        "action": filters.action,
        "target": filters.target,
        "outcome": filters.outcome,
        "address": filters.address,
        "trace_id": filters.trace_id,
        "from": filters.from_,
        "to": filters.to,
        "first": filters.from_ and first_uuid7(filters.from_, -_CLOCKS),
        "last": filters.to and first_uuid7(filters.to, _CLOCKS),
    }
