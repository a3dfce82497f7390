"""Tracing: the request as part of a trace (W3C Trace Context, level 1)."""

from opentelemetry import trace

from app.kernel.http.asgi import App, Receive, Scope, Send, header
from app.kernel.telemetry.traces import continued


class Tracing:
    """Continue the caller's trace, or begin one, so that every log line and problem names it."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        span = continued((header(scope, b"traceparent") or b"").decode("latin-1"))
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            await self._app(scope, receive, send)
