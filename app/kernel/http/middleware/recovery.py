"""Recovery: answers unexpected exceptions with 500, without details."""

from app.kernel.http.asgi import App, Receive, Scope, Send, answering
from app.kernel.http.problems import HttpProblem, send_problem


class Recovery:
    """Answer 500 for an unhandled exception. A response that has started is aborted."""

    def __init__(self, app: App, *, debug: bool) -> None:
        self._app = app
        self._debug = debug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer, send = answering(scope, send)
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            if answer.status:
                raise
            await send_problem(scope, send, HttpProblem(500, repr(error) if self._debug else ""))
