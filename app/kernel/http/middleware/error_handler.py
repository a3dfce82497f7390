"""ErrorHandler: refusals become problem details."""

import asyncio

from app.kernel.errors import Refusal
from app.kernel.http.asgi import App, Receive, Scope, Send
from app.kernel.http.problems import HttpProblem, send_problem


class ErrorHandler:
    """Answer refusals with problem details. Actions refuse before a response starts."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except (Refusal, HttpProblem) as error:
            await send_problem(scope, send, error)
        except BaseException as error:
            if isinstance(error, Exception) or _was_cancelled(error):
                raise
            # SystemExit, or a cancellation of another task: a failure of the operation
            raise RuntimeError(f"the operation raised {type(error).__name__}") from error


def _was_cancelled(error: BaseException) -> bool:
    """Return whether this request was cancelled."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
