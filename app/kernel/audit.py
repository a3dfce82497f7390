"""The audit trail: who did what to whom, from where, with which outcome. Append only."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from opentelemetry import trace

from app.kernel.db import Database, Queries
from app.kernel.errors import Denied
from app.kernel.identifiers import uuid7
from app.kernel.operations import Caller

_ADD = """
    INSERT INTO kernel.audit
        (id, action, outcome, actor_id, session_id, target, details, address, user_agent, request_id, trace_id)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


_PAGE = """
    SELECT id, at, action, outcome, actor_id, session_id, target, details, address, user_agent, request_id, trace_id
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
    """Who did what to whom, from where, with which outcome."""

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
        """Add an entry of its own. Raises Unavailable."""
        await self.audit.record(self.db, caller, operation_id, outcome=Denied.code)


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
                None if target is None else str(target),
                json.dumps(details),
                caller.origin.address,
                caller.origin.user_agent,
                caller.origin.request_id,
                trace.format_trace_id(context.trace_id),
            ),
        )
