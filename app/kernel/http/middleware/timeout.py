"""Timeout: cancels requests that exceed their timeout."""

import asyncio
from typing import cast

from loguru import logger

from app.kernel.concurrency import Deadlines
from app.kernel.http.asgi import TIMEOUT, App, Receive, Scope, Send, answering
from app.kernel.http.problems import HttpProblem, send_problem


class Timeout:
    """Cancel a request that exceeds its timeout and answer 504. A response that has started is aborted."""

    def __init__(self, app: App, seconds: float) -> None:
        self._app = app
        self._deadlines = Deadlines(seconds)
        self._of_routes: dict[float, Deadlines] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer, send = answering(scope, send)
        expired, deadlines = False, self._deadlines

        def change(seconds: float | None) -> None:
            nonlocal deadlines
            deadlines.end(expire)
            if seconds is not None:
                deadlines = self._of_routes.setdefault(seconds, Deadlines(seconds))
                deadlines.begin(expire)

        def expire() -> None:
            nonlocal expired
            expired = True
            if answer.instead == 500:
                answer.instead = 504
            task.cancel()

        # like asyncio.timeout, at a fraction of its cost
        task = cast("asyncio.Task[None]", asyncio.current_task())
        cancelling = task.cancelling()
        deadlines.begin(expire)
        scope[TIMEOUT] = change
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not expired or task.uncancel() > cancelling:  # it was also cancelled elsewhere
                raise
            if answer.status:
                raise TimeoutError from None
            route = scope.get("state", {}).get("route") or scope["path"]
            seconds = deadlines.seconds
            logger.error("{} {} was not answered within {:g} s", scope["method"], route, seconds)
            await send_problem(scope, send, HttpProblem(504, f"no answer within {seconds:g} s"))
        finally:
            deadlines.end(expire)
