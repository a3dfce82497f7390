"""MetaInject: what every request carries. The request id is accepted when well formed, else made, and returned."""

import re

from loguru import logger

from app.kernel.http.asgi import App, Message, Receive, Scope, Send, header
from app.kernel.identifiers import uuid7

_WELL_FORMED = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class MetaInject:
    """Put `request_id` into the scope's state, the log context and the response."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = header(scope, b"x-request-id") or b""
        request_id = given.decode() if _WELL_FORMED.fullmatch(given) else str(uuid7())
        scope.setdefault("state", {})["request_id"] = request_id

        async def inject(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        with logger.contextualize(request_id=request_id):
            await self._app(scope, receive, inject)
