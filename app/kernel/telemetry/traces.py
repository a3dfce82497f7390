"""Traces: how they cross HTTP and the queue (W3C Trace Context, level 1).

Spans cost next to nothing while they are not exported.
"""

import random
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from app.kernel.telemetry.spans import ExportedSpan

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_ratio: float | None = None
_ended: Callable[[ExportedSpan], None]
_NOTHING: Any = nullcontext()
_NO_CONTEXT = context.Context()
_UNSAMPLED = TraceFlags(0)
_SPAN_ID = 0xFFFF_FFFF_FFFF_FFFF


def switch_on(ratio: float, ended: Callable[[ExportedSpan], None]) -> None:
    """Make spans from now on, for this share of the traces that begin here: there is somebody to send them to."""
    global _ratio, _ended
    _ratio, _ended = ratio, ended


def traceparent() -> str | None:
    """Return the current span as a `traceparent`; None outside of every trace."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return None
    return f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"


def exemplar() -> dict[str, str] | None:
    """Return what leads from a measurement to the current trace, if that is exported (OpenMetrics 1.0, exemplars)."""
    if _ratio is None:
        return None
    current = trace.get_current_span().get_span_context()
    return {"trace_id": trace.format_trace_id(current.trace_id)} if current.trace_flags.sampled else None


def _remote(text: str) -> SpanContext | None:
    match = _TRACEPARENT.fullmatch(text)
    if match:
        found = SpanContext(int(match[1], 16), int(match[2], 16), True, TraceFlags(int(match[3], 16)))
        if found.is_valid:
            return found
    return None


def continued(text: str | None, name: str, kind: SpanKind) -> AbstractContextManager[Span | None]:
    """Continue the trace that a `traceparent` names, or begin one, with a span of ours when traces are exported.

    Of a job that no request caused there is nothing when they are not: its id is on its log lines.
    """
    if not text and _ratio is None and kind is SpanKind.CONSUMER:
        return _NOTHING
    remote = _remote(text) if text else None
    if not _is_sampled(remote):
        return _Current(_unexported(remote))
    return ExportedSpan(name, kind, remote, None, _ended, _NO_CONTEXT)


def _is_sampled(remote: SpanContext | None) -> bool:
    """Return whether to export a trace. Decided before OpenTelemetry is asked, most requests cost nothing."""
    if _ratio is None:
        return False
    return remote.trace_flags.sampled if remote else random.random() < _ratio  # noqa: S311 - nothing depends on it


class _Current:
    """A span that is current inside and needs no end: a quarter of the cost of OpenTelemetry's context manager."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        self._token = context.attach(trace.set_span_in_context(self._span, _NO_CONTEXT))
        return self._span

    def __exit__(self, *_: object) -> None:
        context.detach(self._token)


def span(name: str, kind: SpanKind = SpanKind.INTERNAL, **attributes: str | int) -> AbstractContextManager[Any]:
    """Return a span inside the current one; nothing when traces are not exported."""
    if _ratio is None:
        return _NOTHING
    parent = trace.get_current_span().get_span_context()
    return ExportedSpan(name, kind, parent, attributes, _ended) if parent.trace_flags.sampled else _NOTHING


def _unexported(remote: SpanContext | None) -> NonRecordingSpan:
    if remote is None:
        bits = random.getrandbits(192)
        remote = SpanContext(bits >> 64, bits & _SPAN_ID, False, _UNSAMPLED)
    return NonRecordingSpan(remote)
