"""What a proxy in front of us could read differently is refused (RFC 9112, section 6.3 and 5.2)."""

import h11._readers

from app.kernel.http.asgi import App, Receive, Scope, Send, header
from app.kernel.http.problems import HttpProblem


class Edge:
    """Refuse a request whose body length is stated twice."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if header(scope, b"transfer-encoding") is not None and header(scope, b"content-length") is not None:
            raise HttpProblem(400, "Content-Length and Transfer-Encoding together", ((b"connection", b"close"),))
        await self._app(scope, receive, send)


def refuse_folded_headers() -> None:
    """Make h11 refuse header lines that continue the one before, which it would join. Safe to repeat."""
    h11._readers._obsolete_line_fold = lambda lines: lines  # pyright: ignore - there is no option for it
