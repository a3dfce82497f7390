"""Traces: how they cross HTTP and the queue (W3C Trace Context, level 1).

Spans cost next to nothing while they are not exported.
"""

import functools
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from app.kernel.telemetry.spans import ExportedSpan
from app.kernel.telemetry.trace_context import parsed, traceparent, tracestate

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


def current_context() -> str | None:
    """Return the current span as it is stored with jobs and events; None outside of every trace.

    That is its `traceparent` and, after a space, its `tracestate`, if it has one.
    """
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return None
    state = tracestate(current)
    return f"{traceparent(current)} {state}" if state else traceparent(current)


def outgoing() -> dict[str, str]:
    """Return the header fields that continue the current trace in another service; they begin one outside of any.

    Each request is a parent of its own, also when it has no span here: ids differ from call to call.
    """
    span = trace.get_current_span()
    current = span.get_span_context()
    if not span.is_recording():
        remote = current if current.is_valid else None
        current = _begun(remote)
    fields = {"traceparent": traceparent(current)}
    if state := tracestate(current):
        fields["tracestate"] = state
    return fields


def exemplar() -> dict[str, str] | None:
    """Return what leads from a measurement to the current trace, if that is exported (OpenMetrics 1.0, exemplars)."""
    if _ratio is None:
        return None
    current = trace.get_current_span().get_span_context()
    return {"trace_id": trace.format_trace_id(current.trace_id)} if current.trace_flags.sampled else None


def resumed(stored: str | None, name: str) -> AbstractContextManager[Span | None]:
    """Continue the trace in which a job was stored, as `continued` does.

    Of a job that no request caused there is nothing when traces are not exported: its id is on its log lines.
    """
    if not stored:
        return _NOTHING if _ratio is None else continued(None, name, SpanKind.CONSUMER)
    parent, _, state = stored.partition(" ")
    return continued(parsed(parent, state), name, SpanKind.CONSUMER)


def continued(remote: SpanContext | None, name: str, kind: SpanKind) -> AbstractContextManager[Span | None]:
    """Continue a trace of elsewhere, or begin one, with a span of ours when traces are exported."""
    if not _is_sampled(remote):
        return _Current(NonRecordingSpan(remote or _begun(None)))
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


@functools.cache
def trace_requests() -> None:
    """Make a span of each HTTP request that is sent through `requests`, as Apprise does, and continue the trace there.

    OpenTelemetry's own instrumentation writes the URL and the texts of exceptions into its spans, and those of webhooks
    are secrets. Safe to repeat.
    """
    import requests
    from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY  # pyright: ignore[reportPrivateUsage]

    inner = requests.Session.send

    def send(self: requests.Session, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if context.get_value(_SUPPRESS_INSTRUMENTATION_KEY):  # an exporter's own
            return inner(self, request, **kwargs)
        host, method = urlsplit(request.url or "").hostname or "", request.method or ""
        with span(method, SpanKind.CLIENT, **{"http.request.method": method, "server.address": host}) as made:
            request.headers.update(outgoing())
            response = inner(self, request, **kwargs)
            if made is not None:
                made.set_attribute("http.response.status_code", response.status_code)
        return response

    requests.Session.send = send


def _begun(parent: SpanContext | None) -> SpanContext:
    """Return a span that is not exported, in the trace of its parent or in one of its own."""
    bits = random.getrandbits(192)
    span_id = bits & _SPAN_ID or 1
    if parent is None:
        return SpanContext(bits >> 64 or 1, span_id, False, _UNSAMPLED)
    return SpanContext(parent.trace_id, span_id, False, parent.trace_flags, parent.trace_state)
