"""Alerting: logs unexpected errors once, with their context."""

from loguru import logger

from app.kernel.http.asgi import App, Receive, Scope, Send, answering
from app.kernel.telemetry import logs


class Alerting:
    """Log every unexpected exception with its stack, and every 5xx; the sentinel captures these log lines."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer, send = answering(scope, send)
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            logs.failed(error, "unhandled {}", type(error).__name__, route=_route(scope))
            raise
        if answer.status >= 500 and (route := _route(scope)):  # not for probes: their 503 is a regular answer
            logger.bind(route=route).error("{} {} was answered {}", scope["method"], route, answer.status)


def _route(scope: Scope) -> str:
    return scope.get("state", {}).get("route", "")
