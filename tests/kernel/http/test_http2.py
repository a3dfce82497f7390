"""HTTP/2 in clear text, where it is switched on: what is malformed is refused and no error of ours (RFC 9113)."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import hpack
import pytest
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger

from app.kernel.http.asgi import Receive, Scope, Send, respond
from app.kernel.http.codecs import read_body
from app.kernel.http.problems import HttpProblem
from tests.support.serving import Serving, serving

EXAMPLES = int(os.environ.get("PROTOCOL_EXAMPLES", "60"))
REACHED: list[str] = []
CLIENTS: "list[Client]" = []
GET = [(":method", "GET"), (":scheme", "http"), (":path", "/x"), (":authority", "x")]
POST = [(":method", "POST"), *GET[1:]]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and answer with its length."""
    if scope["path"] == "/cut":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise ConnectionAbortedError("cut")
    if scope["path"] == "/inject":
        with pytest.raises(ValueError, match="control character"):
            await respond(send, 200, b"text/html\r\nset-cookie: a=b", b"")
        return
    if scope["path"] == "/early":
        raise HttpProblem(413, "", ((b"connection", b"close"),))
    body = await read_body(scope, receive, 1_000_000, 5)
    REACHED.append(f"{scope['method']} {len(body)}")
    await respond(send, 200, b"text/plain", str(len(body)).encode())


@pytest.fixture
async def server() -> AsyncIterator[Serving]:
    """A server of which nothing may complain when the test is over."""
    REACHED.clear()
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    heard = logger.add(lambda message: unhandled.append(str(message)), level="ERROR", filter=_is_ours)
    async with serving(app, HTTP_SERVER_H2C="true") as served:
        yield served
        async with asyncio.timeout(10):
            while any("_handle" in repr(task.get_coro()) for task in asyncio.all_tasks()):  # requests
                await asyncio.sleep(0.01)
        for client in CLIENTS:
            client.writer.close()
        CLIENTS.clear()
    logger.remove(heard)
    assert unhandled == []


def _is_ours(record: Any) -> bool:
    return "ConnectionAbortedError" not in record["message"] and "/cut" not in record["message"]


class Client:
    """A client that knows nothing but frames, and so can send all of them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._next = 1
        self.frames: list[Any] = []
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.send(SettingsFrame(0))

    def send(self, *frames: Any) -> None:
        self.writer.write(b"".join(frame.serialize() for frame in frames))

    def headers(self, number: int, fields: list[Any], *flags: str) -> HeadersFrame:
        """Return the frame of a header, whatever it has in it."""
        encoded = self._encoder.encode([(_bytes(name), _bytes(value)) for name, value in fields])
        return HeadersFrame(number, encoded, flags=["END_HEADERS", *flags])

    def request(self, fields: list[Any], *data: bytes, end: bool = True) -> int:
        """Send a request; return the number of its stream."""
        number, self._next = self._next, self._next + 2
        self.send(self.headers(number, fields, *(["END_STREAM"] if end and not data else [])))
        for place, piece in enumerate(data):
            self.send(DataFrame(number, piece, flags=["END_STREAM"] if end and place == len(data) - 1 else []))
        return number

    async def until(self, number: int) -> "tuple[int, bytes] | None":
        """Wait for the end of a stream; return status and body, None when it or the connection was reset."""
        status, body = 0, b""
        async with asyncio.timeout(10):
            while (frame := await self.read()) is not None and not isinstance(frame, GoAwayFrame):
                if frame.stream_id != number:
                    continue
                if isinstance(frame, RstStreamFrame):
                    return None
                if isinstance(frame, HeadersFrame):
                    found = dict(self._decoder.decode(frame.data, raw=True))
                    status = int(found[b":status"])
                    assert b"connection" not in found
                elif isinstance(frame, DataFrame):
                    body += frame.data
                if "END_STREAM" in frame.flags:
                    return status, body
        return None

    async def read(self) -> Any:
        """Return the next frame; None at the end."""
        try:
            frame, length = Frame.parse_frame_header(memoryview(await self._reader.readexactly(9)))
            frame.parse_body(memoryview(await self._reader.readexactly(length)))
        except (ConnectionError, asyncio.IncompleteReadError):
            return None
        self.frames.append(frame)
        if isinstance(frame, SettingsFrame) and not frame.flags:
            self.send(SettingsFrame(0, flags=["ACK"]))
        return frame

    async def drained(self) -> bool:
        """Wait for the end of the connection; return whether the server said goodbye."""
        async with asyncio.timeout(10):
            while await self.read() is not None:
                pass
        return any(isinstance(frame, GoAwayFrame) for frame in self.frames)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


async def connect(server: Serving) -> Client:
    CLIENTS.append(Client(*await server.connect()))
    return CLIENTS[-1]


async def ask(server: Serving, headers: list[Any], *data: bytes) -> "tuple[int, bytes] | None":
    client = await connect(server)
    return await client.until(client.request(headers, *data))


async def is_alive(server: Serving) -> bool:
    return await ask(server, GET) == (200, b"0")


async def test_requests_are_served(server: Serving) -> None:
    assert await ask(server, GET) == (200, b"0")
    assert await ask(server, [("content-length", "5"), *[]] and [*POST, ("content-length", "5")], b"12", b"345") == (
        200,
        b"5",
    )
    assert await ask(server, POST, b"x" * 16000) == (200, b"16000")
    assert await ask(server, [(":method", "HEAD"), *GET[1:]]) == (200, b"")
    options = [(":method", "OPTIONS"), (":scheme", "http"), (":path", "*"), (":authority", "x")]
    assert await ask(server, options) == (204, b"")
    both = await server.ask(b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert both.startswith(b"HTTP/1.1 200 ")


def changed(**fields: str | bytes) -> list[Any]:
    """Return a GET with pseudo headers of other values; None leaves one out."""
    made = {name[1:]: value for name, value in GET} | fields
    return [(f":{name}", value) for name, value in made.items() if value is not None]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (changed(method="TRACE"), 405),
        (changed(method="BREW"), 200),
        ([(":method", "CONNECT"), (":authority", "x:80")], 405),
        ([(":method", "CONNECT"), (":authority", "x:80"), (":path", "/x"), (":scheme", "http")], None),
        ([(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:]], 400),
        (changed(method="G T"), 400),
        (changed(method=b"G\xc3\xa9T"), 400),
        (changed(scheme="ftp"), 400),
        (changed(scheme=""), 400),
        (changed(scheme="HTTPS"), 200),
        (changed(path="x"), 400),
        (changed(path="*"), 400),
        (changed(path="http://x/y"), 400),
        (changed(path="/a b"), 400),
        (changed(path="/hé"), 400),
        (changed(path=b"/\xff"), 400),
        (changed(path="/%0"), 400),
        (changed(path="/x#y"), 400),
        (changed(path="/x%00"), 400),
        (changed(authority="u@x"), 400),
        (changed(authority="a b"), 400),
        (changed(authority="[::1"), 400),
        (changed(authority=""), 400),
        (changed(authority=b"\xff"), 400),
        ([*GET, ("x-a", "\x01")], 400),
        ([*POST, ("content-length", "5")], 400),
        ([*POST, ("content-length", "5"), ("content-length", "5")], 400),
        ([*POST, ("content-length", "9" * 30)], 400),
        ([*GET, ("authorization", "Bearer a"), ("authorization", "Bearer a")], 400),
        ([*GET, ("x-request-id", "a"), ("x-b", "c"), ("x-request-id", "")], 400),
        # the library closes the connection on these
        (changed(path=""), None),
        (changed(path=None), None),
        (changed(method=None), None),
        (changed(scheme=None), None),
        (changed(authority=None), None),
        ([*GET, (":path", "/y")], None),
        ([*GET, ("x-a", "b"), (":scheme", "http")][1:], None),
        ([*GET, (":nothing", "x")], None),
        ([*GET, (":status", "200")], None),
        ([*GET, ("X-A", "b")], None),
        ([*GET, ("", "b")], None),
        ([*GET, ("x a", "b")], None),
        ([*GET, ("x-a", "b\r\nc: d")], None),
        ([*GET, ("x-a", "b\0")], None),
        ([*GET, ("connection", "close")], None),
        ([*GET, ("upgrade", "h2c")], None),
        ([*GET, ("transfer-encoding", "chunked")], None),
        ([*GET, ("te", "gzip")], None),
        ([*GET, ("host", "y")], None),
        ([*POST, ("content-length", "-5")], None),
        ([*POST, ("content-length", "x")], None),
        ([*POST, ("content-length", "5"), ("content-length", "6")], None),
    ],
)
async def test_what_is_malformed_is_refused(server: Serving, headers: list[Any], status: int | None) -> None:
    found = await ask(server, headers)
    assert (found and found[0]) == status
    assert status == 200 or REACHED == []
    assert await is_alive(server)


@pytest.mark.parametrize("pieces", [(b"1234",), (b"123456",), (b"12", b"34"), (b"",)])
async def test_a_body_of_another_length_than_it_says_never_reaches_the_application(
    server: Serving, pieces: tuple[bytes, ...]
) -> None:
    found = await ask(server, [*POST, ("content-length", "5")], *pieces)
    assert found is None or found[0] == 400
    assert REACHED == []
    assert await is_alive(server)


async def test_a_body_that_trailers_end_too_early_is_refused(server: Serving) -> None:
    client = await connect(server)
    number = client.request([*POST, ("content-length", "5")], b"1234", end=False)
    client.send(client.headers(number, [("x-a", "b")], "END_STREAM"))
    found = await client.until(number)
    assert found is not None
    assert found[0] == 400
    assert REACHED == []


async def test_a_body_that_nobody_reads_any_more_hurts_nobody(server: Serving) -> None:
    client = await connect(server)
    early = client.request(changed(method="POST", path="/early"), b"x", end=False)
    found = await client.until(early)
    assert found is not None
    assert found[0] == 413
    client.send(*[DataFrame(early, b"y" * 16000)] * 3)
    assert await client.until(client.request(GET)) == (200, b"0")


async def test_an_answer_that_is_cut_is_reset(server: Serving) -> None:
    client = await connect(server)
    assert await client.until(client.request(changed(path="/cut"))) is None
    assert await client.until(client.request(GET)) == (200, b"0")


async def test_an_answer_whose_headers_have_control_characters_is_never_sent(server: Serving) -> None:
    client = await connect(server)
    assert await client.until(client.request(changed(path="/inject"))) == (500, b"")
    assert await client.until(client.request(GET)) == (200, b"0")


async def test_priorities_are_ignored(server: Serving) -> None:
    client = await connect(server)
    for number, on in ((1, 3), (3, 1), (5, 7), (7, 5), (9, 0)):
        client.send(PriorityFrame(number, depends_on=on, stream_weight=255, exclusive=True))
    assert await client.until(client.request(GET)) == (200, b"0")


async def test_a_client_that_opens_and_resets_without_end_is_cut(server: Serving) -> None:
    client = await connect(server)
    for _ in range(300):
        client.send(RstStreamFrame(client.request(POST, b"x", end=False), error_code=8))
    assert await client.drained()
    assert await is_alive(server)


async def test_a_connection_answers_every_request_however_many_they_are(server: Serving) -> None:
    client = await connect(server)
    for _ in range(60):
        numbers = {client.request(GET) for _ in range(20)}
        for _ in range(2):
            client.send(RstStreamFrame(client.request(POST, b"x", end=False), error_code=8))
        async with asyncio.timeout(10):
            while numbers:
                frame = await client.read()
                assert frame is not None
                assert not isinstance(frame, GoAwayFrame), f"with {len(numbers)} in flight"
                if "END_STREAM" in frame.flags:
                    numbers.discard(frame.stream_id)


async def test_a_stop_says_of_a_new_stream_that_nothing_was_done(server: Serving) -> None:
    client = await connect(server)
    begun = client.request(POST, b"x", end=False)
    assert await client.until(client.request(GET)) == (200, b"0")
    server.stop.set()
    await asyncio.sleep(0.1)
    late = client.request(GET)
    client.send(DataFrame(begun, b"y", flags=["END_STREAM"]))
    assert await client.until(begun) == (200, b"2")
    [reset] = [frame for frame in client.frames if isinstance(frame, RstStreamFrame)]
    assert (reset.stream_id, reset.error_code) == (late, 7)
    assert REACHED == ["GET 0", "POST 2"]


async def test_streams_in_flight_are_bounded_like_connections() -> None:
    async with serving(app, HTTP_SERVER_H2C="true", HTTP_SERVER_MAX_CONNECTIONS="20") as server:
        clients = [Client(*await server.connect()) for _ in range(2)]
        begun = [(client, client.request(POST, b"x", end=False)) for client in clients for _ in range(5)]
        for client in clients:
            found = await client.until(client.request(GET))
            assert found is not None
            assert found[0] == 503
        for client, number in begun:
            client.send(DataFrame(number, b"y", flags=["END_STREAM"]))
        for client, number in begun:
            async with asyncio.timeout(10):
                while not any(f.stream_id == number and "END_STREAM" in f.flags for f in client.frames):
                    assert await client.read() is not None
        assert await ask(server, GET) == (200, b"0")
        for client in [*clients, CLIENTS.pop()]:
            client.writer.close()


STREAMS, FLAGS = st.integers(1, 9), st.lists(st.sampled_from(["END_STREAM", "END_HEADERS"]))
FRAMES = st.one_of(
    st.builds(lambda n, data, end: DataFrame(n, data, flags=end), STREAMS, st.binary(max_size=30), st.just([])),
    st.builds(lambda n, data, flags: HeadersFrame(n, data, flags=flags), STREAMS, st.binary(max_size=30), FLAGS),
    st.builds(lambda n, code: RstStreamFrame(n, error_code=code), STREAMS, st.integers(0, 20)),
    st.builds(lambda n, by: WindowUpdateFrame(n, window_increment=by), st.integers(0, 9), st.integers(1, 2**31 - 1)),
    st.builds(lambda n, on: PriorityFrame(n, depends_on=on, stream_weight=3), STREAMS, st.integers(0, 9)),
    st.builds(lambda code: GoAwayFrame(0, error_code=code), st.integers(0, 20)),
    st.builds(lambda name, value: SettingsFrame(0, {name: value}), st.integers(0, 9), st.integers(0, 2**32 - 1)),
).map(lambda frame: frame.serialize())
GOOD = b"a request"
PIECES = st.lists(st.just(GOOD) | FRAMES | st.binary(max_size=40), max_size=12)


async def test_any_frames_are_answered_or_refused(server: Serving) -> None:
    runs: list[list[bytes]] = []

    @settings(max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(PIECES)
    def collect(pieces: list[bytes]) -> None:
        runs.append(pieces)

    await asyncio.to_thread(collect)
    for pieces in runs:
        client = await connect(server)
        for piece in pieces:
            if piece is GOOD:
                client.request(GET)
            else:
                client.writer.write(piece)
        client.writer.close()
    assert await is_alive(server)
