"""Logger: one line and one measurement per request."""

import time

from app.kernel.http.asgi import App, Receive, Scope, Send, answering
from app.kernel.telemetry import logs, metrics, traces

_PROBES = frozenset({"/health", "/ready", "/metrics"})


class Logger:
    """Log method, path, status and duration when the request is over; probes only at debug level."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer, send = answering(scope, send)
        started, failed = time.perf_counter(), 500
        try:
            await self._app(scope, receive, send)
            failed = 0
        finally:
            took_s = time.perf_counter() - started
            status = answer.status or failed
            method, path, level = scope["method"], scope["path"], "INFO"
            route = scope.get("state", {}).get("route", "")
            if path in _PROBES:
                route, level = path, "DEBUG"
            metrics.request_ended(method, route, status, took_s, traces.exemplar())
            logs.ended(level, "{} {} {} in {:.1f} ms", method, path, status, took_s * 1000)
