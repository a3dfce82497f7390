"""Tracing: the request as part of a trace (W3C Trace Context, level 1)."""

from opentelemetry.trace import SpanKind, Status, StatusCode

from app.kernel.http.asgi import METHODS, App, Receive, Scope, Send, answering
from app.kernel.telemetry.trace_context import from_headers
from app.kernel.telemetry.traces import continued


class Tracing:
    """Continue the caller's trace, or begin one, so that log lines and problem details carry its id."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        with continued(from_headers(scope["headers"]), method, SpanKind.SERVER) as span:
            answer, send = answering(scope, send)
            if span is not None:
                context = scope.setdefault("state", {})["span"] = span.get_span_context()  # for problems outside
                answer.headers.append((b"x-trace-id", b"%032x" % context.trace_id))
            if span is None or not span.is_recording():
                await self._app(scope, receive, send)
                return
            try:
                await self._app(scope, receive, send)
            finally:
                about: dict[str, str | int] = {
                    "http.request.method": method,
                    "http.response.status_code": answer.outcome,
                }
                if route := scope.get("state", {}).get("route"):
                    span.update_name(f"{method} {route}")
                    about["http.route"] = route
                span.set_attributes(about)
                if answer.outcome >= 500:
                    span.set_status(Status(StatusCode.ERROR))
