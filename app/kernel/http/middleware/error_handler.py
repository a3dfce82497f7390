"""ErrorHandler: refusals become problem details."""

from app.kernel.errors import Refusal
from app.kernel.http.asgi import App, Receive, Scope, Send
from app.kernel.http.problems import HttpProblem, send_problem


class ErrorHandler:
    """Answer what the application refuses. It decides before a response starts, so nothing was sent yet."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except (Refusal, HttpProblem) as error:
            await send_problem(scope, send, error)
