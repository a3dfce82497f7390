"""Logger: one line and one measurement per request."""

import time
from typing import Any

from loguru import logger

from app.kernel.http.asgi import App, Message, Receive, Scope, Send
from app.kernel.telemetry import metrics

_PROBES = frozenset({"/health", "/ready", "/metrics"})


class Logger:
    """Log method, path, status and duration when the request is over; probes only at debug level."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.perf_counter(), 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        except BaseException:
            status = status or 500
            raise
        finally:
            took_s = time.perf_counter() - started
            about: dict[str, Any] = scope.setdefault("state", {})
            path, route = scope["path"], about.get("route", "")
            if path in _PROBES:
                level, route = "DEBUG", path
            else:
                level = "INFO"
            metrics.request_ended(scope["method"], route, status, took_s)
            who = {name: about[name] for name in ("operation", "actor_id") if name in about}
            with logger.contextualize(**who):
                logger.log(level, "{} {} {} in {:.1f} ms", scope["method"], path, status, took_s * 1000)
