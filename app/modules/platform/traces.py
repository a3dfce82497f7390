"""Traces: everything with one trace id or request id."""

from dataclasses import dataclass
from typing import Annotated

from app.kernel.actions import Database, Doc, read
from app.kernel.fields import Pattern
from app.kernel.traces import TraceEntry, TraceLog
from app.modules.platform.domain.queue import TraceNotFound


@dataclass(frozen=True, slots=True)
class TraceRef:
    """A trace or a request."""

    id: Annotated[
        str, Pattern("^[A-Za-z0-9._-]{1,64}$"), Doc("Trace id or request id, such as `X-Request-ID` of a response.")
    ]


@dataclass(frozen=True, slots=True)
class Trace:
    """What happened in a trace, in order of time."""

    id: str
    trace_ids: list[str]
    entries: list[TraceEntry]


@dataclass(frozen=True, slots=True)
class Traces:
    """Show everything that belongs to a request."""

    log: TraceLog

    @read(
        "platform.get_trace",
        GET="/platform/v1/traces/{id}",
        permission="platform:traces:read",
        raises=(TraceNotFound,),
        command="traces show",
        examples=("0190a1b2-c3d4-7e5f-8607-18293a4b5c6d", "4bf92f3577b34da6a3ce929d0e0e4736 --json"),
    )
    async def get(self, db: Database, trace: TraceRef) -> Trace:
        """Show audit entries, events, jobs and errors with a trace id or a request id, in order of time.

        Requests that only read leave no entry. Of each kind up to 500 entries are shown.
        """
        ids, entries = await self.log.entries(db, trace.id)
        if not entries:
            raise TraceNotFound(f"nothing is stored with the id {trace.id}; requests that only read leave nothing")
        return Trace(trace.id, ids, entries)
