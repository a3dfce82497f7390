"""Logger: one line per request."""

import time

from loguru import logger

from app.kernel.http.asgi import App, Message, Receive, Scope, Send

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
            level = "DEBUG" if scope["path"] in _PROBES else "INFO"
            took_ms = (time.perf_counter() - started) * 1000
            logger.log(level, "{} {} {} in {:.1f} ms", scope["method"], scope["path"], status, took_ms)
