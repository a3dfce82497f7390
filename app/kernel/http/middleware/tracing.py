"""Tracing: the request as part of a trace (W3C Trace Context, level 1)."""

import os
import re

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from app.kernel.http.asgi import App, Receive, Scope, Send, header

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


class Tracing:
    """Continue the caller's trace, or begin one, so that every log line and problem names it."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with trace.use_span(NonRecordingSpan(_context(scope)), record_exception=False, set_status_on_exception=False):
            await self._app(scope, receive, send)


def _context(scope: Scope) -> SpanContext:
    match = _TRACEPARENT.fullmatch(header(scope, b"traceparent") or b"")
    if match:
        context = SpanContext(int(match[1], 16), int(match[2], 16), True, TraceFlags(int(match[3], 16)))
        if context.is_valid:
            return context
    random = os.urandom(24)
    return SpanContext(int.from_bytes(random[:16]), int.from_bytes(random[16:]), False, TraceFlags(0))
