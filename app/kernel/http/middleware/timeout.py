"""Timeout: a request is answered, one way or the other, within the handle timeout."""

import asyncio

from loguru import logger

from app.kernel.http.asgi import App, Message, Receive, Scope, Send
from app.kernel.http.problems import HttpProblem, send_problem


class Timeout:
    """Cancel what takes too long and answer 504. A response that has started can only be cut."""

    def __init__(self, app: App, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                await self._app(scope, receive, note)
        except TimeoutError:
            if started or not limit.expired():
                raise
            route = scope.get("state", {}).get("route", "")
            logger.error("{} {} was not answered within {:g} s", scope["method"], route, self._seconds)
            await send_problem(scope, send, HttpProblem(504, f"no answer within {self._seconds:g} s"))
