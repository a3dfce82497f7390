"""ASGI without a framework, so that workers can answer probes without one."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]
AtStart = Callable[[list[tuple[bytes, bytes]]], list[tuple[bytes, bytes]]]
"""Returns what is added to the fields of a response that starts."""
CLOSE = ((b"connection", b"close"),)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REFUSED = "app.refused"
"""In the scope: why a request is not served, an HttpProblem if it cannot be read, Unavailable if there is no room."""
LEFT = "app.left"
"""In the scope when the client has left before the response started."""
CLIENT_LEFT = 499
"""The status that is logged and measured when the client has left before an answer. As in nginx."""
CONTINUE = "app.continue"
"""In the scope of a client that waits for 100 (Continue) before it sends the body: a function that sends it."""
REFUSED_BODY = "app.refused_body"
"""In a message: why the rest of the body is refused, an Unavailable."""
TIMEOUT = "app.timeout"
"""In the scope: a function that gives the request so many seconds, from now on, or any number of them (None)."""
CLOSING = "app.closing"
"""In the scope: an asyncio.Event that is set when the server accepts no more connections."""
_ANSWER = "app.answer"


def _no_more(_fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return []


class Answer:
    """How far a request has been answered. One for all middlewares: a wrapper of `send` in each would cost as much as
    they do."""

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
        """Fields that the response gets when it starts."""
        self.status = 0
        """0 until the response starts."""
        self.instead = 500
        """The status that will be sent when the application ends without a response."""
        self.size_bytes = 0
        """Of the body, as far as it was sent."""
        self.streamed_at = 0.0
        """`time.perf_counter()` when a stream of events began: the request itself took until then."""
        self.at_end: Callable[[], None] | None = None
        """Called once, with the last part of the body."""

    @property
    def outcome(self) -> int:
        """The one status of the request: of its answer, its log line, its measurement and its span."""
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
    """Return the answer to a request, and what sends it. The outermost caller makes it; `at_start` has its last fields.

    Safe to repeat.
    """
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
