"""One connection: passes received data to Hypercorn's protocols, and closes without losing a response.

It replaces Hypercorn's TCPServer, which closes connections that have just received a request, hangs on an unread body,
and treats a half-closed connection as closed.
"""

import asyncio
import fcntl
import termios
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.typing import ConnectionState
from hyperframe.frame import GoAwayFrame

from app.kernel.http.asgi import CLOSE, CLOSING, App, Message, Scope
from app.kernel.http.exchange import Exchange, HypercornSend
from app.kernel.http.problems import HttpProblem
from app.kernel.http.protocols import Http1
from app.kernel.telemetry import logs

if TYPE_CHECKING:
    from app.kernel.http.server import Listener

_MOST_UNREAD_BYTES = _MOST_UNSENT_BYTES = 65536
_LINGER_BYTES = 64 * 1024 * 1024
_LINGER_S = 30.0


class Connection(asyncio.Protocol):
    """One connection: asyncio's protocol, and the task group that Hypercorn starts applications in."""

    def __init__(self, server: "Listener", address: str, refusal: str, *, is_proxy: bool) -> None:
        self.server = server
        self.address = address
        self.refusal = refusal
        """The limit that was reached, so that only the probes are served; empty when everything is served."""
        self.is_proxy = is_proxy
        self.handshake: asyncio.Task[Any] | None = None
        """The TLS handshake, before which asyncio does not connect the transport."""
        self.is_idle = True
        self._received: deque[bytes] = deque()
        self._unread_bytes = 0
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._is_paused = False
        self._exchanges: dict[Exchange, asyncio.Task[None]] = {}
        self._protocol: ProtocolWrapper | None = None
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.Transport
        self._is_connected = False  # to the transport
        self._task: asyncio.Task[None] | None = None
        self._arrived: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._has_ended = False  # end of file was received
        self._reads = True
        self._has_part = self._is_late = False  # of a request header
        self._left_at = 0.0
        self._lingering_bytes = 0

    @property
    def is_last(self) -> bool:
        """Whether the next response is the last one."""
        return bool(self.refusal) or self.server.is_leaving

    # called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._is_connected = True
        if self.handshake is not None and self in self.server.heads:
            self.server.heads.begin(self)  # the time of the handshake does not count
        if self._left_at:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._left_at:
            self._lingering_bytes += len(data)
            if self._lingering_bytes > _LINGER_BYTES or time.monotonic() - self._left_at > _LINGER_S:
                self.abort()
            else:
                self.server.left(self)
            return
        self._received.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > _MOST_UNREAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        _wake(self._arrived)

    def eof_received(self) -> bool:
        self._has_ended = True
        _wake(self._arrived)
        return not self._left_at and self.handshake is None  # a half-closed client still reads; TLS has no half-close

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature is asyncio's
        self._has_ended = True
        _wake(self._lost)
        _wake(self._writable)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        _wake(self._writable)
        self._writable = None

    # called by Hypercorn

    async def spawn_app(
        self,
        app: App,
        config: object,  # noqa: ARG002 - the signature is Hypercorn's
        scope: Scope,
        send: HypercornSend,
    ) -> Callable[[Message], Awaitable[None]]:
        """Begin an exchange; return the function that receives the messages of its request."""
        scope[CLOSING] = self.server.closing
        exchange = Exchange(self, scope, send)
        self.server.check_limits(self, scope)
        task = self._exchanges[exchange] = asyncio.ensure_future(exchange.run(app))
        self.server.request_begun(self)

        def ended(_: object) -> None:
            self._exchanges.pop(exchange)
            self.server.request_ended(self)

        task.add_done_callback(ended)
        return exchange.put

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        """Run a task until the connection ends."""
        task = asyncio.ensure_future(function(*arguments))
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)

    async def send(self, event: Event) -> None:
        """Handle an event of the protocol."""
        if isinstance(event, RawData):
            if event.data and not self._lost.done() and not self._left_at:
                self._write(event.data)
                if self._writable is not None:
                    await asyncio.shield(self._writable)
        elif isinstance(event, Updated):
            if event.idle:
                self._rest()
            else:
                self.is_idle = self._has_part = False
                self.server.begun(self)
        elif isinstance(event, Closed):
            self.leave()

    def _write(self, data: bytes) -> None:
        """Send data together with what follows in this turn of the loop: fewer system calls."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes > _MOST_UNSENT_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._unsent and not self._lost.done():
            self._transport.write(b"".join(self._unsent))
        self._unsent, self._unsent_bytes = [], 0

    # lifetime

    async def run(self, client: tuple[str, int], server: tuple[str, int]) -> None:
        """Serve the connection until it is closed."""
        protocol = self._protocol = ProtocolWrapper(
            cast("Any", self.server.app),
            self.server.config,
            self.server.context,
            cast("Any", self),
            ConnectionState({}),
            self.handshake is not None,
            client,
            server,
            self.send,
            self._alpn(),
        )
        self._task = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            await self._read(protocol)
            await self._lost
        except asyncio.CancelledError:
            if not self._lost.done():
                raise
        except Exception as error:  # noqa: BLE001 - it must not stop the server
            logs.failed(error, "a connection failed: {}", type(error).__name__)
        finally:
            self._task = None
            self.abort()
            await protocol.handle(Closed())
            for task in self._side_tasks:
                task.cancel()
            await self._lost
            if self._exchanges:  # a request may have effects, so it continues without its client
                await asyncio.wait(self._exchanges.values())

    @property
    def _is_multiplexed(self) -> bool:
        return self._protocol is not None and isinstance(self._protocol.protocol, H2Protocol)

    def _alpn(self) -> str | None:
        """Return the protocol that the client has chosen in the handshake (RFC 7301)."""
        return None if self.handshake is None else self._transport.get_extra_info("ssl_object").selected_alpn_protocol()

    async def _read(self, protocol: ProtocolWrapper) -> None:
        """Pass received data to the protocol until the end of the input."""
        await protocol.initiate()
        while data := await self._next():
            await protocol.handle(RawData(data))
            if self.is_idle and not isinstance(protocol.protocol, H2Protocol):
                self._has_part = True
                if self in self.server.idle:
                    self.server.idle.end(self)
                    self.server.heads.begin(self)
        self._reads = False
        if self._is_late and isinstance(protocol.protocol, Http1):
            await protocol.protocol.refuse(HttpProblem(408, "the header did not arrive in time", CLOSE))
        if self._left_at:
            await protocol.handle(Closed())  # no further response is sent
        for exchange in self._exchanges:
            exchange.client_ended()
        if self.is_idle:
            self.leave()

    async def _next(self) -> bytes:
        """Return received data; empty at the end of the input."""
        while not self._received:
            if self._has_ended or self._left_at or self._is_late:
                return b""
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        if self._left_at or self._is_late:
            return b""
        data = self._received.popleft()
        self._unread_bytes -= len(data)
        if self._is_paused and self._unread_bytes <= _MOST_UNREAD_BYTES:
            self._resume_reading()
        return data

    def _resume_reading(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def _rest(self) -> None:
        """Wait for the next request, or close. HTTP/1 clients have been told to close by now, or will be."""
        self.is_idle = True
        self._flush()
        if not self._reads or (self.server.closing.is_set() and self._is_multiplexed):
            self.leave()
        else:
            self.server.idle.begin(self)

    def leave(self) -> None:
        """Flush, then wait for the client to close: a reset would lose data (RFC 9112, section 9.6). Safe to repeat."""
        if self._left_at or self._lost.done():
            return
        self._flush()
        self._left_at = time.monotonic()
        self._received.clear()
        _wake(self._arrived)
        self.server.left(self)
        self._resume_reading()
        if self._has_ended or (self.handshake is not None and all(each.is_complete for each in self._exchanges)):
            self._transport.close()
        elif self.handshake is None:  # with TLS, a client that is still sending must close first
            with suppress(OSError):  # already closed
                self._transport.write_eof()

    def expire(self) -> None:
        """End the wait for a request, or the lingering close."""
        waited_s = time.monotonic() - self._left_at if self._left_at else _LINGER_S
        if self._lost.done():
            return
        if self._has_part and not self._left_at and not self.refusal:
            self._is_late = True
            _wake(self._arrived)
        elif waited_s < _LINGER_S and self._transport.get_write_buffer_size():
            self.server.left(self)
        else:
            self.abort()

    def stop(self) -> None:
        """Close an idle connection, unless a request is in the socket's buffer."""
        if not self._is_connected or self._received or self not in self.server.idle:
            return
        waiting = array("i", [0])
        fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.FIONREAD, waiting)
        if waiting[0]:
            return
        protocol = self._protocol.protocol if self._protocol else None
        if isinstance(protocol, H2Protocol):  # not earlier: many clients abandon streams in flight at a GOAWAY
            last = protocol.connection.highest_inbound_stream_id
            self._flush()
            self._transport.write(GoAwayFrame(0, last_stream_id=last).serialize())
        self.leave()

    def abort(self) -> None:
        """Close the connection at once."""
        self._left_at = self._left_at or time.monotonic()
        if self._is_connected:
            self._transport.abort()
        elif self.handshake is not None:
            self.handshake.cancel()

    def cancel_requests(self) -> list["asyncio.Task[None]"]:
        """Cancel the requests in flight; return their tasks."""
        for exchange, task in self._exchanges.items():
            exchange.mark_cancelled()
            task.cancel()
        return list(self._exchanges.values())


def _wake(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)
