"""The few ASGI pieces that need no framework, so that workers can answer without one."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


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
