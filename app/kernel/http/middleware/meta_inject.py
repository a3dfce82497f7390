"""MetaInject: what every request carries. The request id is accepted when well formed, else made, and returned."""

import re
from collections.abc import Sequence

from app.kernel.http.asgi import App, Receive, Scope, Send, answering, header
from app.kernel.http.origin import Network, origin
from app.kernel.identifiers import uuid7_text
from app.kernel.telemetry import logs

_WELL_FORMED = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class MetaInject:
    """Put `request_id` into the scope's state, the log context and the response; `origin` into the state."""

    def __init__(self, app: App, trusted: Sequence[Network] = ()) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer, send = answering(scope, send)
        given = header(scope, b"x-request-id")
        request_id = given.decode() if given and _WELL_FORMED.fullmatch(given) else uuid7_text()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["origin"] = origin(scope, self._trusted)
        answer.headers.append((b"x-request-id", request_id.encode()))
        logs.new_context(request_id=request_id)
        await self._app(scope, receive, send)
