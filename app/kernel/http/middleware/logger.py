"""Logger: one line and one measurement per request."""

import asyncio
import time

from app.kernel.http.asgi import CLIENT_LEFT, METHODS, Answer, App, Receive, Scope, Send, answering
from app.kernel.telemetry import logs, metrics, traces

_PROBES = frozenset({"/health", "/ready", "/metrics"})
_LONGEST = 256
_LINE = "{} {} {} in {:.1f} ms"


class Logger:
    """Log request and response when the request ends; probes at debug level."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer, send = answering(scope, send)
        started, complete, example = time.perf_counter(), False, traces.exemplar()

        def record() -> None:
            took_s = (answer.streamed_at or time.perf_counter()) - started
            _record(scope, answer, took_s, complete=complete, example=example)

        try:
            await self._app(scope, receive, send)
            complete = True
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and answer.instead == 500:  # not for its timeout
                answer.instead = 503
            if not answer.status:  # an outer middleware answers
                complete, answer.at_end = True, record
                raise
            record()
            raise
        record()


def _record(scope: Scope, answer: Answer, took_s: float, *, complete: bool, example: dict[str, str] | None) -> None:
    status, path, state = answer.outcome, scope["path"], scope.get("state", {})
    method = scope["method"] if scope["method"] in METHODS else "other"
    route = path if path in _PROBES else state.get("route", "")
    metrics.request_ended(method, route, status, took_s, example)
    fields: dict[str, object] = {
        "method": method,
        "route": route,
        "status": status,
        "duration_ms": round(took_s * 1000, 1),
        "bytes": 0 if method == "HEAD" or status == CLIENT_LEFT else answer.size_bytes,
        "client_address": state["origin"].address if "origin" in state else "",
    }
    cut = not complete and status != CLIENT_LEFT
    if cut:
        fields["cut"] = True  # the response is incomplete
    level = _level(status, cut=cut, probe=path in _PROBES)
    asked = scope["method"][:_LONGEST], path[:_LONGEST]
    logs.ended(level, _LINE, *asked, status, took_s * 1000, fields=fields, span=state.get("span"))


def _level(status: int, *, cut: bool, probe: bool) -> logs.Level:
    if probe and (status < 400 or status == 503):  # 503 of /ready is a regular answer
        return "DEBUG"
    if (status >= 500 and status != 505) or cut:  # 505 is the client's error
        return "ERROR"
    return "INFO" if status < 400 else "WARNING"
