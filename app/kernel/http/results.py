"""Results that are not JSON: pages, files and streams of events. Actions return them."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol
from urllib.parse import quote

from app.kernel.http.asgi import CLOSING, TIMEOUT, Headers, Receive, Scope, Send, answering, respond


class Result(Protocol):
    """A result that sends itself."""

    documented_as: ClassVar[str]
    """Media type in OpenAPI."""

    async def send(self, scope: Scope, receive: Receive, send: Send, status: int, headers: Headers) -> None:
        """Send the response with these additional header fields."""
        ...


@dataclass(frozen=True, slots=True)
class Html:
    """A page. Its `policy` (CSP) allows styles, scripts and images of this origin only."""

    documented_as: ClassVar[str] = "text/html"

    text: str
    policy: str = (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )

    async def send(self, scope: Scope, receive: Receive, send: Send, status: int, headers: Headers) -> None:  # noqa: ARG002
        """Send the page."""
        policy = (b"content-security-policy", self.policy.encode())
        await respond(send, status, b"text/html; charset=utf-8", self.text.encode(), [policy, *headers])


@dataclass(frozen=True, slots=True)
class File:
    """A file, as bytes or as a generator of parts; the timeout of the route applies.

    With a `name`, browsers save it, otherwise they show it. The generator is closed when the client disconnects.
    """

    documented_as: ClassVar[str] = "*/*"

    content: bytes | AsyncGenerator[bytes]
    media_type: str = "application/octet-stream"
    name: str = ""

    async def send(self, scope: Scope, receive: Receive, send: Send, status: int, headers: Headers) -> None:
        """Send the file."""
        about = [(b"content-disposition", self._disposition()), *headers]
        if isinstance(self.content, bytes):
            await respond(send, status, self.media_type.encode(), self.content, about)
            return
        fields = [(b"content-type", self.media_type.encode()), *about]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        left = asyncio.ensure_future(_disconnected(receive))
        try:
            async with aclosing(self.content) as parts:
                if scope["method"] != "HEAD":
                    async for part in parts:
                        if left.done():
                            return
                        await send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            await _ended(left)
        await send({"type": "http.response.body", "body": b""})

    def _disposition(self) -> bytes:
        if not self.name:
            return b"inline"
        return f"attachment; filename*=UTF-8''{quote(self.name, safe='')}".encode()  # RFC 6266, section 4.3


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One server-sent event. `name` and `id` are single lines."""

    data: str
    name: str = ""
    id: str = ""

    def encoded(self) -> bytes:
        """Return the event in the wire format. Raises ValueError when `name` or `id` has a line break or NUL."""
        if not {"\r", "\n", "\0"}.isdisjoint(self.name + self.id):
            raise ValueError("the name and the id of an event are single lines")
        lines = [f"{field}: {value}" for field, value in (("event", self.name), ("id", self.id)) if value]
        lines += [f"data: {line}" for line in self.data.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
        return "\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True, slots=True)
class EventStream:
    """Server-sent events, until the generator ends, the client disconnects, the server closes, or `longest_s` expires.

    No other timeout applies. Browsers reconnect and are authenticated again; permissions are not checked during a
    stream. The generator runs after the action has returned, so it must not use the action's transaction; it is closed
    with the stream. A comment after `keep_alive_s` idle seconds keeps proxies from closing the connection, and detects
    disconnected clients.
    """

    documented_as: ClassVar[str] = "text/event-stream"

    events: AsyncGenerator[ServerSentEvent]
    longest_s: float = field(default=300, kw_only=True)
    keep_alive_s: float = field(default=15, kw_only=True)

    async def send(self, scope: Scope, receive: Receive, send: Send, status: int, headers: Headers) -> None:
        """Send the events."""
        scope[TIMEOUT](None)
        answering(scope, send)[0].streamed_at = time.perf_counter()
        fields = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no"), *headers]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        async with aclosing(self.events):
            if scope["method"] != "HEAD":
                await self._stream(scope, receive, send)
        await send({"type": "http.response.body", "body": b""})

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self.longest_s
        over = {asyncio.ensure_future(_disconnected(receive)), asyncio.ensure_future(scope[CLOSING].wait())}
        coming = asyncio.ensure_future(anext(self.events, None))
        try:
            while (left_s := ends_at - loop.time()) > 0:
                timeout_s = min(self.keep_alive_s, left_s)
                await asyncio.wait({*over, coming}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if any(task.done() for task in over):
                    return
                part = b":\n\n"
                if coming.done():
                    event = coming.result()
                    if event is None:
                        return
                    part, coming = event.encoded(), asyncio.ensure_future(anext(self.events, None))
                await send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            await _ended(*over, coming)


async def _disconnected(receive: Receive) -> None:
    """Wait until the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel tasks and wait for them."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
