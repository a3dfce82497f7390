"""Timeout: a request is answered, one way or the other, within the handle timeout."""

import asyncio
from typing import cast

from loguru import logger

from app.kernel.http.asgi import App, Message, Receive, Scope, Send
from app.kernel.http.problems import HttpProblem, send_problem


class Timeout:
    """Cancel what takes too long and answer 504. A response that has started can only be cut."""

    def __init__(self, app: App, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = expired = False

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        def expire() -> None:
            nonlocal expired
            expired = True
            task.cancel()

        # what asyncio.timeout does, at half of its cost: this is for every request
        task = cast("asyncio.Task[None]", asyncio.current_task())
        cancelling = task.cancelling()
        timer = asyncio.get_running_loop().call_later(self._seconds, expire)
        try:
            await self._app(scope, receive, note)
        except asyncio.CancelledError:
            if not expired or task.uncancel() > cancelling:  # somebody else has cancelled it, too
                raise
            if started:
                raise TimeoutError from None
            route = scope.get("state", {}).get("route", "")
            logger.error("{} {} was not answered within {:g} s", scope["method"], route, self._seconds)
            await send_problem(scope, send, HttpProblem(504, f"no answer within {self._seconds:g} s"))
        finally:
            timer.cancel()
