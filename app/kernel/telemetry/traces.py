"""Traces: how they cross HTTP and the queue (W3C Trace Context, level 1).

Spans cost next to nothing while they are not exported.
"""

import os
import re
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_tracer = trace.get_tracer("app")
_exported = False
_NOTHING = nullcontext()


def switch_on() -> None:
    """Make spans from now on: there is somebody to send them to."""
    global _exported  # noqa: PLW0603 - like OpenTelemetry's provider, it is the process's
    _exported = True


def traceparent() -> str | None:
    """Return the current span as a `traceparent`; None outside of every trace."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _remote(text: str) -> SpanContext | None:
    match = _TRACEPARENT.fullmatch(text)
    if match:
        context = SpanContext(int(match[1], 16), int(match[2], 16), True, TraceFlags(int(match[3], 16)))
        if context.is_valid:
            return context
    return None


@contextmanager
def continued(text: str, name: str, kind: SpanKind, attributes: Mapping[str, str | int]) -> Generator[Span]:
    """Continue the trace that a `traceparent` names, or begin one, with a span of ours when traces are exported."""
    remote = _remote(text)
    if not _exported:
        with trace.use_span(_unexported(remote), record_exception=False, set_status_on_exception=False) as span:
            yield span
        return
    parent = trace.set_span_in_context(NonRecordingSpan(remote)) if remote else None
    with _failing(_tracer.start_span(name, parent, kind, attributes)) as span:
        yield span


def span(name: str, kind: SpanKind = SpanKind.INTERNAL, **attributes: str | int) -> AbstractContextManager[Any]:
    """Return a span inside the current one; nothing when traces are not exported."""
    if not _exported:
        return _NOTHING
    return _failing(_tracer.start_span(name, None, kind, attributes))


@contextmanager
def _failing(made: Span) -> Generator[Span]:
    # of an exception only the type: a message may hold anything
    with trace.use_span(made, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield made
        except BaseException as error:
            made.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def _unexported(remote: SpanContext | None) -> NonRecordingSpan:
    if remote is None:
        random = os.urandom(24)
        trace_id, span_id = int.from_bytes(random[:16], "big"), int.from_bytes(random[16:], "big")
        remote = SpanContext(trace_id, span_id, False, TraceFlags(0))
    return NonRecordingSpan(remote)
