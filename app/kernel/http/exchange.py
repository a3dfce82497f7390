"""A request and its response, between Hypercorn and the application."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from app.kernel.errors import Unavailable
from app.kernel.http.asgi import CONTINUE, REFUSED_BODY, App, Message, Scope, answering
from app.kernel.http.problems import send_problem

if TYPE_CHECKING:
    from app.kernel.http.connection import Connection

_MOST_UNREAD_MESSAGES = 10
_CLOSE = (b"connection", b"close")
_HSTS = (b"strict-transport-security", b"max-age=31536000")

HypercornSend = Callable[[Message | None], Awaitable[None]]


class Exchange:
    """A request and its response, in their own task."""

    def __init__(self, connection: "Connection", scope: Scope, send: HypercornSend) -> None:
        self._connection = connection
        self._scope = scope
        self._end = send
        # HTTP/2 has no Connection header (RFC 9113, section 8.2.2)
        at_start = self._at_start if scope["http_version"][0] == "1" else None
        self._answer, self._send = answering(scope, send, at_start)
        if connection.server.is_strict:
            self._answer.headers.append(_HSTS)
        self._messages: deque[Message] = deque()
        self._waiting: asyncio.Future[None] | None = None  # for messages, or for room in the queue
        self._is_complete = self._is_over = self._refused = False
        self._counted = 0

    async def run(self, app: App) -> None:
        """Run the application. Answer 503 when it is cancelled."""
        try:
            await app(self._scope, self.receive, self._send)
        except asyncio.CancelledError:
            if not self._answer.status:
                await send_problem(self._scope, self._send, Unavailable("this process is stopping; try again", 1))
        except Exception:  # noqa: BLE001, S110 - already logged, and the response has started
            pass
        finally:
            self._is_over = True
            self._wake()
            if self._counted:
                self._connection.server.bodies.give(self._address(), self._counted)
            await self._end(None)
            self._scope.clear()  # these refer to each other: garbage that only the collector would find
            del self._answer, self._send, self._end

    @property
    def is_complete(self) -> bool:
        """Whether the whole request has been received."""
        return self._is_complete

    def mark_cancelled(self) -> None:
        """Mark the request as cancelled: its status is 503 unless the response has started."""
        if not self._is_over:
            self._answer.instead = 503

    def _at_start(self, fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        # the rest of an unread body makes the connection unusable
        is_last = self._connection.is_last or not self._is_complete
        return [_CLOSE] if is_last and _CLOSE not in fields else []

    async def receive(self) -> Message:
        """Return the next message of the request (ASGI).

        The first call sends 100 (Continue) to a client that waits for it (RFC 9110, section 10.1.1).
        """
        if not self._messages and (go_on := self._scope.pop(CONTINUE, None)) is not None:
            await go_on()
        while not self._messages:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        message = self._messages.popleft()
        self._wake()
        return message

    async def put(self, message: Message) -> None:
        """Queue a message of the request. Waits while the queue is full and the application runs."""
        is_part = message["type"] == "http.request" and message["more_body"]
        if is_part:
            if self._is_over or self._refused:
                return
            size_bytes = len(message["body"])
            if problem := self._connection.server.bodies.take(self._address(), size_bytes):
                self._refused = True
                message = {"type": "http.request", "body": b"", "more_body": True, REFUSED_BODY: problem}
            else:
                self._counted += size_bytes
        else:
            self._is_complete = self._is_complete or message["type"] == "http.request"
        self._messages.append(message)
        self._wake()
        while is_part and len(self._messages) > _MOST_UNREAD_MESSAGES and not self._is_over:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting

    def client_ended(self) -> None:
        """Report a disconnect to the application unless the request is complete."""
        if not self._is_complete:
            self._messages.append({"type": "http.disconnect"})
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _address(self) -> str:
        connection = self._connection
        return connection.server.client_of(self._scope) if connection.is_proxy else connection.address
