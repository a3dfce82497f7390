"""The audit trail: who did what to whom, from where, with which outcome. Append only."""

import json
from dataclasses import dataclass
from uuid import UUID

from opentelemetry import trace

from app.kernel.db import Queries
from app.kernel.identifiers import uuid7
from app.kernel.operations import Caller

_ADD = """
    INSERT INTO kernel.audit
        (id, action, outcome, actor_id, session_id, target, details, address, user_agent, request_id, trace_id)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


@dataclass(frozen=True, slots=True)
class Audit:
    """Writes the audit trail."""

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
