"""Trace propagation through HTTP and the queue (W3C Trace Context, level 1).

Unexported spans cost almost nothing.
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
    """Start making spans, for a share of the traces that begin here; `ended` receives them."""
    global _ratio, _ended
    _ratio, _ended = ratio, ended


def current_context() -> str | None:
    """Return the current span as stored with jobs and events, or None outside a trace.

    The format is `traceparent`, then a space and `tracestate` if it has one.
    """
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return None
    state = tracestate(current)
    return f"{traceparent(current)} {state}" if state else traceparent(current)


def outgoing() -> dict[str, str]:
    """Return the header fields that continue the current trace in another service, or begin one.

    Each call returns a new span id, also without a span here.
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
    """Return an exemplar of the current trace if it is exported (OpenMetrics 1.0, exemplars)."""
    if _ratio is None:
        return None
    current = trace.get_current_span().get_span_context()
    return {"trace_id": trace.format_trace_id(current.trace_id)} if current.trace_flags.sampled else None


def resumed(stored: str | None, name: str) -> AbstractContextManager[Span | None]:
    """Continue the trace that is stored with a job. A job without one begins a trace if traces are exported."""
    if not stored:
        return _NOTHING if _ratio is None else continued(None, name, SpanKind.CONSUMER)
    parent, _, state = stored.partition(" ")
    return continued(parsed(parent, state), name, SpanKind.CONSUMER)


def continued(remote: SpanContext | None, name: str, kind: SpanKind) -> AbstractContextManager[Span | None]:
    """Continue a remote trace, or begin one, with a span when traces are exported."""
    if not _is_sampled(remote):
        return _Current(NonRecordingSpan(remote or _begun(None)))
    return ExportedSpan(name, kind, remote, None, _ended, _NO_CONTEXT)


def _is_sampled(remote: SpanContext | None) -> bool:
    """Return whether to export a trace. Deciding before the call of OpenTelemetry makes most requests free."""
    if _ratio is None:
        return False
    return remote.trace_flags.sampled if remote else random.random() < _ratio  # noqa: S311 - sampling


class _Current:
    """Makes an unexported span current, at a quarter of the cost of OpenTelemetry's context manager."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        self._token = context.attach(trace.set_span_in_context(self._span, _NO_CONTEXT))
        return self._span

    def __exit__(self, *_: object) -> None:
        context.detach(self._token)


def span(name: str, kind: SpanKind = SpanKind.INTERNAL, **attributes: str | int) -> AbstractContextManager[Any]:
    """Return a child of the current span, or a null context when its trace is not exported."""
    if _ratio is None:
        return _NOTHING
    parent = trace.get_current_span().get_span_context()
    return ExportedSpan(name, kind, parent, attributes, _ended) if parent.trace_flags.sampled else _NOTHING


@functools.cache
def trace_requests() -> None:
    """Make a span of each HTTP request that is sent with `requests`, as Apprise does, and propagate the trace.

    OpenTelemetry's instrumentation records URLs and exception messages; those of webhooks contain secrets. Safe to
    repeat.
    """
    import requests
    from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY  # pyright: ignore[reportPrivateUsage]

    inner = requests.Session.send

    def send(self: requests.Session, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if context.get_value(_SUPPRESS_INSTRUMENTATION_KEY):  # a request of the exporter
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
    """Return an unexported span in the trace of its parent, or in a new one."""
    bits = random.getrandbits(192)
    span_id = bits & _SPAN_ID or 1
    if parent is None:
        return SpanContext(bits >> 64 or 1, span_id, False, _UNSAMPLED)
    return SpanContext(parent.trace_id, span_id, False, parent.trace_flags, parent.trace_state)
