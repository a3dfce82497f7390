"""Tracing: the request as part of a trace (W3C Trace Context, level 1)."""

from opentelemetry.trace import SpanKind, Status, StatusCode

from app.kernel.http.asgi import App, Message, Receive, Scope, Send, header
from app.kernel.telemetry.traces import continued


class Tracing:
    """Continue the caller's trace, or begin one, so that every log line and problem names it."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parent = (header(scope, b"traceparent") or b"").decode("latin-1")
        method = scope["method"]
        with continued(parent, method, SpanKind.SERVER, {"http.request.method": method}) as span:
            if not span.is_recording():
                await self._app(scope, receive, send)
                return

            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute("http.response.status_code", status)
                    if status >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            try:
                await self._app(scope, receive, note)
            finally:
                if route := scope.get("state", {}).get("route"):
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
