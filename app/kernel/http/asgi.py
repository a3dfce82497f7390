"""ASGI types and helpers without a framework, so that workers answer probes without one."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]
AtStart = Callable[[list[tuple[bytes, bytes]]], list[tuple[bytes, bytes]]]
"""Returns the header fields to add to a response when it starts."""
CLOSE = ((b"connection", b"close"),)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REFUSED = "app.refused"
"""In the scope of a refused request: HttpProblem if it is malformed, Unavailable if a limit was reached."""
LEFT = "app.left"
"""In the scope when the client has disconnected before the response started."""
CLIENT_LEFT = 499
"""The status in logs and metrics when the client has disconnected before the response, as in nginx."""
CONTINUE = "app.continue"
"""In the scope of a request with `Expect: 100-continue`: a function that sends 100."""
REFUSED_BODY = "app.refused_body"
"""In a message: the Unavailable that refuses the rest of the body."""
TIMEOUT = "app.timeout"
"""In the scope: a function that sets the timeout of the request, in seconds from now; None for no timeout."""
CLOSING = "app.closing"
"""In the scope: an asyncio.Event that is set when the server stops accepting connections."""
_ANSWER = "app.answer"


def _no_more(_fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return []


class Answer:
    """State of a response, shared by all middlewares: a `send` wrapper in each would double their cost."""

    __slots__ = (
        "_at_start",
        "_scope",
        "_send",
        "at_end",
        "headers",
        "instead",
        "size_bytes",
        "status",
        "streamed_at",
    )

    def __init__(self, scope: Scope, send: Send, at_start: AtStart) -> None:
        self._scope = scope
        self._send = send
        self._at_start = at_start
        self.headers: list[tuple[bytes, bytes]] = [(b"x-content-type-options", b"nosniff")]
        """Header fields to add when the response starts."""
        self.status = 0
        """0 until the response starts."""
        self.instead = 500
        """The status when the application ends without a response."""
        self.size_bytes = 0
        """Bytes of the body sent so far."""
        self.streamed_at = 0.0
        """`time.perf_counter()` when an event stream began; the duration of the request ends then."""
        self.at_end: Callable[[], None] | None = None
        """Called once, with the last part of the body."""

    @property
    def outcome(self) -> int:
        """The status of the request in its response, log line, metrics and span."""
        if self.status:
            return self.status
        return CLIENT_LEFT if LEFT in self._scope else self.instead

    async def send(self, message: Message) -> None:
        """Send a message of the response."""
        if message["type"] == "http.response.start":
            self.status = CLIENT_LEFT if LEFT in self._scope else message["status"]
            fields = [*message["headers"], *self.headers]
            message["headers"] = fields + self._at_start(fields)
        else:
            self.size_bytes += len(message.get("body", b""))
            if self.at_end is not None and not message.get("more_body"):
                at_end, self.at_end = self.at_end, None
                at_end()
        await self._send(message)


def answering(scope: Scope, send: Send, at_start: AtStart | None = None) -> tuple[Answer, Send]:
    """Return the Answer of a request and its `send`. The outermost caller makes it. Safe to repeat."""
    answer: Answer | None = scope.get(_ANSWER)
    if answer is None:
        answer = scope[_ANSWER] = Answer(scope, send, at_start or _no_more)
        return answer, answer.send
    return answer, send


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first value of a request header; `name` is in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return value
    return None


async def respond(send: Send, status: int, content_type: bytes, body: bytes, headers: Headers = ()) -> None:
    """Send a whole response."""
    fields = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
