"""Alerting: what nobody expected is told with its context, once, where it happened."""

from loguru import logger

from app.kernel.http.asgi import App, Receive, Scope, Send


class Alerting:
    """Log every unexpected exception with its stack, and let it go on to Recovery."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            logger.opt(exception=error).error("unhandled {}", type(error).__name__)
            raise
