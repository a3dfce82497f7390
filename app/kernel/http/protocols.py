"""HTTP/1 and HTTP/2: strict variants of Hypercorn 0.18's protocols over h11 0.16 and h2 4.4.

This file and http1_reader.py have all changes to these libraries; tests/kernel/http/test_protocol.py fails when a
version of them behaves differently. Malformed input becomes a request that `Validation` refuses, so it is answered,
logged and measured like any other request.
"""

import functools
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.utils import formatdate
from typing import Any, cast

import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h11
import hypercorn.protocol
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol, StreamBuffer
from hypercorn.protocol.h11 import STREAM_ID, H2ProtocolAssumedError, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream

from app.kernel.http.asgi import CLOSE, CONTINUE, LEFT, REFUSED
from app.kernel.http.http1_reader import LONGEST_HEAD, LONGEST_LENGTH, TEXT, TOKEN, H11Connection, checked
from app.kernel.http.problems import HttpProblem, malformed
from app.kernel.http.validation import check_host, check_single, target

_VISIBLE = bytes(range(0x21, 0x7F))
_MOST_RESETS = 100


def read_strictly() -> None:
    """Make Hypercorn use the protocols of this file. Safe to repeat."""
    hypercorn.protocol.H11Protocol = Http1  # pyright: ignore[reportPrivateImportUsage] - there is no option for it
    hypercorn.protocol.H2Protocol = Http2  # pyright: ignore[reportPrivateImportUsage]


class ServerConfig(Config):
    """Hypercorn's settings. The Date header (RFC 9110, section 6.6.1) is formatted once a second."""

    h2c = False
    accesslog = errorlog = None

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:  # noqa: ARG002 - the signature is Hypercorn's
        return [(b"date", _date(int(time.time())))]


@functools.lru_cache(1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


class _Stream(HTTPStream):
    """A request and its response, in either version."""

    async def open(
        self,
        method: str,
        headers: list[tuple[bytes, bytes]],
        version: str,
        where: bytes,
        refused: HttpProblem | None,
        go_on: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Pass the request to the application."""
        self.start_time = 0.0  # of Hypercorn's access log, which is off
        self._received, self._expected = 0, None
        if version == "2" and refused is None:
            self._expected = next((int(value) for name, value in headers if name == b"content-length"), None)
        path, raw_path, query = "-", b"-", b""
        if refused is None:
            try:
                check_single(headers)
                path, raw_path, query, authority = target(method.encode(), where)
                if authority is not None:
                    headers = [(name, value) for name, value in headers if name != b"host"]
                    headers.append((b"host", authority))
            except HttpProblem as problem:
                refused = problem
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": method,
            "scheme": self.scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": self.client,
            "server": self.server,
            "state": {},
            "extensions": {},
        }
        if go_on is not None:
            scope[CONTINUE] = go_on
        if refused is not None:
            scope[REFUSED] = refused
        self.scope = cast("Any", scope)
        self.app_put = await self.task_group.spawn_app(self.app, self.config, self.scope, self.app_send)

    async def refuse(self, problem: HttpProblem) -> None:
        """Tell the application that the rest of the request is malformed."""
        cast("Any", self.scope)[REFUSED] = problem
        await self.app_put({"type": "http.disconnect"})

    async def handle(self, event: StreamEvent) -> None:
        if isinstance(event, Body):
            self._received += len(event.data)
        elif isinstance(event, EndBody) and self._expected not in (None, self._received):
            await self.refuse(malformed("the body and its Content-Length differ in length"))
            return
        elif isinstance(event, StreamClosed) and self.state is ASGIHTTPState.REQUEST:
            cast("Any", self.scope)[LEFT] = True
        await super().handle(event)


class Http1(H11Protocol):
    """A connection that speaks HTTP/1. `Upgrade` is ignored."""

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self.connection = H11Connection(h11.SERVER, max_incomplete_event_size=2 * LONGEST_HEAD)
        self._refused = False

    async def handle(self, event: Event) -> None:
        if not (self._refused and isinstance(event, RawData)):
            await super().handle(event)

    async def _handle_events(self) -> None:
        while not self._refused:
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                await self.refuse(HttpProblem(error.error_status_hint, str(error), CLOSE))
                break
            if isinstance(event, h11.Request):
                await self.send(Updated(idle=False))
                await self._create_stream(event)
            elif event is h11.PAUSED:
                await self.can_read.clear()
                await self.can_read.wait()
            elif isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA or self.stream is None:
                break
            elif isinstance(event, h11.Data):
                await self.stream.handle(Body(stream_id=STREAM_ID, data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await self.stream.handle(EndBody(stream_id=STREAM_ID))

    async def _create_stream(self, request: h11.Request) -> None:
        headers, method, refused = list(request.headers), request.method.decode(), None
        if request.http_version == b"2.0":
            if self.config.h2c and self.keep_alive_requests == 0:  # pyright: ignore - a setting of ours
                raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])
            await self.refuse(HttpProblem(505, "this speaks HTTP/1.1", CLOSE))
            return
        try:
            for name, value in headers:
                if name == b"host":
                    check_host(value)
        except HttpProblem as problem:
            refused = problem
        await self._open(method, headers, request.http_version.decode(), request.target, refused)

    async def stream_send(self, event: StreamEvent) -> None:
        if not isinstance(event, Response) or event.status_code < 200:
            await super().stream_send(event)
            return
        headers = [*event.headers, *self.config.response_headers("h11")]
        requests = cast("int", self.keep_alive_requests)
        if requests >= self.config.keep_alive_max_requests:
            headers.append((b"connection", b"close"))
        await self._send_h11_event(h11.Response(headers=checked(headers), status_code=event.status_code))

    async def _continue(self) -> None:
        if self.connection.they_are_waiting_for_100_continue:
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))

    async def _open(self, method: str, headers: Any, version: str, where: bytes, refused: HttpProblem | None) -> None:
        about = (self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server)
        self.stream = stream = _Stream(*about, self.stream_send, STREAM_ID)
        go_on = self._continue if self.connection.they_are_waiting_for_100_continue else None
        await stream.open(method, headers, version, where, refused, go_on)
        self.keep_alive_requests += 1
        await self.context.mark_request()

    async def refuse(self, problem: HttpProblem) -> None:
        """Answer malformed input, and stop reading."""
        self._refused = True
        if self.stream is None and self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self.send(Updated(idle=False))
            await self._open("-", [], "1.1", b"-", problem)
        elif self.stream is None:
            await self.send(Closed())
        elif self.connection.our_state is h11.SEND_RESPONSE:
            await cast("_Stream", self.stream).refuse(problem)


class Http2(H2Protocol):
    """A connection that speaks HTTP/2."""

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        codes = h2.settings.SettingCodes
        limits = {
            codes.MAX_CONCURRENT_STREAMS: self.config.h2_max_concurrent_streams,
            codes.MAX_HEADER_LIST_SIZE: self.config.h2_max_header_list_size,
        }
        self.connection.local_settings = h2.settings.Settings(client=False, initial_values=limits)
        self._requests = self._resets = 0

    async def handle(self, event: Event) -> None:
        await super().handle(event)
        if isinstance(event, Closed):  # waiting data is no longer sent
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                if (stream := self.streams.get(event.stream_id)) is not None:  # None: already answered
                    await stream.handle(Body(stream_id=event.stream_id, data=event.data))
                self._give_back(event)
            elif isinstance(event, h2.events.RequestReceived) and self.context.terminated.is_set():
                self._refuse_stream(event.stream_id)
            elif isinstance(event, h2.events.PriorityUpdated):
                pass  # RFC 9113, section 5.3.2: deprecated
            else:
                self._resets += isinstance(event, h2.events.StreamReset)
                if self._resets > max(_MOST_RESETS, self._requests // 2):
                    self.connection.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                    await self._flush()
                    await self.handle(Closed())
                    await self.send(Closed())
                    return
                await super()._handle_events([event])
        await self._flush()

    def _refuse_stream(self, number: int) -> None:
        """Tell the client that the request was not processed and may be retried (RFC 9113, section 8.7)."""
        self.connection.reset_stream(number, h2.errors.ErrorCodes.REFUSED_STREAM)
        self.connection.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 0})

    def _give_back(self, event: h2.events.DataReceived) -> None:
        with suppress(h2.exceptions.ProtocolError):  # the stream may have ended
            self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        given = cast("list[tuple[bytes, bytes]]", request.headers)
        pseudo = {name: value for name, value in given if name.startswith(b":")}
        headers = [(name, value) for name, value in given if not name.startswith(b":")]
        if (authority := pseudo.get(b":authority")) is not None:
            headers = [(b"host", authority), *(field for field in headers if field[0] != b"host")]
        method, where, refused = pseudo[b":method"], pseudo.get(b":path", authority or b""), None
        try:
            scheme = pseudo.get(b":scheme", b"")
            _check_h2(method, scheme, where, headers, ended=request.stream_ended is not None)
        except HttpProblem as problem:
            refused, method = problem, b"-"
        number = request.stream_id
        about = (self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server)
        stream = self.streams[number] = _Stream(*about, self.stream_send, number)
        self.stream_buffers[number] = StreamBuffer(self.context.event_class)
        self.priority.insert_stream(number)
        self.priority.block(number)
        await stream.open(method.decode(), headers, "2", where, refused)
        # not keep_alive_requests: at its maximum, Hypercorn closes without answering requests in flight
        self._requests += 1
        await self.context.mark_request()

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, Response):  # RFC 9113, sections 8.2.1 and 8.2.2
            if any(value.translate(None, TEXT) for _, value in event.headers):  # h2 sends it, h11 does not
                raise ValueError("a header of the response has a control character")
            event.headers[:] = [field for field in event.headers if field[0] != b"connection"]
        elif isinstance(event, StreamClosed):
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is not None and not buffer._complete:  # pyright: ignore[reportPrivateUsage] - the application ended before its response
                with suppress(h2.exceptions.ProtocolError):
                    self.connection.reset_stream(event.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
                    await self._flush()
                await buffer.close()
        await super().stream_send(event)


def _check_h2(method: bytes, scheme: bytes, where: bytes, headers: list[tuple[bytes, bytes]], *, ended: bool) -> None:
    """Raise HttpProblem 400 for malformed requests that h2 accepts (RFC 9113, sections 8.1.1 and 8.3.1)."""
    if not method or method.translate(None, TOKEN):
        raise malformed("the method is malformed")
    is_path = where.startswith(b"/") or (method, where) == (b"OPTIONS", b"*") or method == b"CONNECT"
    if where.translate(None, _VISIBLE) or not is_path:
        raise malformed("the path is malformed")
    if method != b"CONNECT" and scheme.lower() not in (b"http", b"https"):
        raise malformed("the scheme is neither http nor https")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1:
        raise malformed("the host is missing or duplicate")
    check_host(hosts[0])
    if any(value.translate(None, TEXT) for _, value in headers):
        raise malformed("a header has a control character")
    lengths = [value for name, value in headers if name == b"content-length"]
    if len(lengths) > 1 or any(len(length) > LONGEST_LENGTH for length in lengths):
        raise malformed("Content-Length is not a number")
    if ended and lengths and int(lengths[0]):
        raise malformed("the body is shorter than its Content-Length")
