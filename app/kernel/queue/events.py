"""Events: published in the transaction of what happened, delivered as one job per subscription."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from opentelemetry import trace

from app.kernel.db import Transaction
from app.kernel.identifiers import uuid7

_PUBLISH = """
    WITH event AS (
        INSERT INTO kernel.events (id, type, payload, trace_context)
        VALUES (%(id)s, %(type)s, %(payload)s, %(trace)s)
        RETURNING type, payload, trace_context
    )
    INSERT INTO kernel.jobs (id, task, payload, trace_context, max_attempts, run_at)
    SELECT gen_random_uuid(), s.subscriber, event.payload, event.trace_context, 5, now()
    FROM event JOIN kernel.subscriptions s ON s.event_type = event.type
"""


class Event(Protocol):
    """A frozen dataclass of something that has happened; its name is past tense, such as `auth.actor_disabled`."""

    event_type: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Events:
    """Publishes events."""

    async def publish(self, tx: Transaction, event: Event) -> None:
        """Append the event to the log and enqueue a job for each subscription, in one statement of the transaction."""
        context = trace.get_current_span().get_span_context()
        await tx.run(
            _PUBLISH,
            {
                "id": uuid7(),
                "type": event.event_type,
                "payload": json.dumps(dataclasses.asdict(event), default=str),
                "trace": f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}-01",
            },
        )
