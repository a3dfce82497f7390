"""Trace context as text (W3C Trace Context, level 1): how a trace crosses HTTP and the queue."""

import os
import re

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


def traceparent() -> str | None:
    """Return the current span as a `traceparent`; None outside of every trace."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def continued(text: str) -> NonRecordingSpan:
    """Return the span that a `traceparent` names, as the parent of what follows; a new trace when it names none."""
    match = _TRACEPARENT.fullmatch(text)
    if match:
        context = SpanContext(int(match[1], 16), int(match[2], 16), True, TraceFlags(int(match[3], 16)))
        if context.is_valid:
            return NonRecordingSpan(context)
    random = os.urandom(24)
    return NonRecordingSpan(
        SpanContext(int.from_bytes(random[:16], "big"), int.from_bytes(random[16:], "big"), False, TraceFlags(0))
    )
