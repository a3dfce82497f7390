"""The life of connections, over real sockets: on the event loop that processes use, and on asyncio's own."""

import asyncio
import gc
import inspect
import os
import re
import socket
import struct
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h2.connection
import pytest
import uvloop
from loguru import logger

from app.kernel.config import HttpServerSettings, load
from app.kernel.http import connection
from app.kernel.http import server as listening
from app.kernel.http.asgi import CLOSE, Receive, Scope, Send, respond
from app.kernel.http.codecs import read_body
from app.kernel.http.probes import Probes
from app.kernel.http.problems import HttpProblem
from app.kernel.http.server import http_service
from app.kernel.process import Process
from app.kernel.sockets import BACKLOG, bind
from app.processes import sections
from tests.support.project import ROOT

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.SelectorEventLoop}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the event loop that processes use, and on asyncio's."""

    def run(loop: str, **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(test(**arguments))

    parameters = [inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)]
    parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in inspect.signature(test).parameters.values()]
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.pytestmark = [*getattr(test, "pytestmark", []), pytest.mark.parametrize("loop", LOOPS).mark]  # type: ignore[attr-defined]
    return run


@dataclass
class Served:
    """A server in this process, and what its application did."""

    url: str
    port: int
    process: Process
    stop: asyncio.Event
    running: "asyncio.Future[None]"
    executed: list[str] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self, *, host: str = "127.0.0.1", source: str | None = None) -> Streams:
        return await asyncio.open_connection(host, self.port, local_addr=(source, 0) if source else None)

    async def metric(self, name: str) -> float:
        text = (await self.get("/metrics")).partition(b"\r\n\r\n")[2].decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def get(self, path: str) -> bytes:
        """Return a whole answer, on a connection of its own."""
        return await self.ask(b"GET " + path.encode() + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

    async def ask(self, request: bytes) -> bytes:
        reader, writer = await self.open()
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    async def drain(self) -> None:
        self.process.state = "stopping"
        self.stop.set()
        await asyncio.sleep(0)


Serve = Callable[..., Any]


@asynccontextmanager
async def served(**environment: str) -> AsyncGenerator[Served]:
    environ = {"APP_ENV": "test", **environment}
    process = Process("test", load(ROOT, sections(), environ), ROOT)
    process.state = "ready"
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    stop = asyncio.Event()
    limits = process.settings[HttpServerSettings]
    about: Served

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith("/refuse/"):
            status = int(path.removeprefix("/refuse/"))
            raise HttpProblem(status, "", CLOSE if status in (400, 408, 413) else ())
        about.executed.append(path)
        if path == "/body":
            body = await read_body(scope, receive, limits.max_body_bytes, limits.body_timeout)
            await respond(send, 200, b"text/plain", str(len(body)).encode())
            return
        if path == "/slow":
            await about.release.wait()
        await respond(send, 200, b"text/plain", b"x" * 3_000_000 if path == "/large" else path.encode())

    service = http_service(process, Probes(process, app), sock, "http")
    running = asyncio.ensure_future(service(stop))
    about = Served(f"http://127.0.0.1:{port}", port, process, stop, running)
    await asyncio.sleep(0.01)
    try:
        yield about
        about.release.set()
        await about.drain()
        await asyncio.wait_for(running, 10)
    finally:
        running.cancel()
        await asyncio.wait({running})


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: x", *headers, "\r\n"]).encode()


async def answers(reader: asyncio.StreamReader, count: int = 1) -> list[bytes]:
    found = []
    for _ in range(count):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        found.append(head + await reader.readexactly(length))
    return found


async def closed(reader: asyncio.StreamReader, seconds: float = 5) -> bool:
    """Return whether the server closes within so many seconds, without another byte."""
    try:
        return await asyncio.wait_for(reader.read(), seconds) == b""
    except ConnectionError:
        return True


async def until(probe: Callable[[], Awaitable[bool]], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not await probe():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", ["/", "/body", "/refuse/404"])
@on_both_loops
async def test_a_request_leaves_nothing_to_the_garbage_collector(path: str) -> None:
    async with served() as server:
        reader, writer = await server.open()
        writer.write(get(path))
        await answers(reader)
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                writer.write(get(path))
                await answers(reader)
            assert gc.collect() < 50
        finally:
            gc.enable()
        writer.close()


@on_both_loops
async def test_a_client_that_leaves_without_a_byte_holds_nothing() -> None:
    async with served() as server:
        opened = [await server.open() for _ in range(20)]
        await until(lambda: _is(server, 21))
        for _, writer in opened:
            writer.close()
        await until(lambda: _is(server, 1), 1)


async def _is(server: Served, count: int) -> bool:
    return await server.metric('http_server_connections{listener="http",state="open"}') == count


@on_both_loops
async def test_a_client_that_has_finished_sending_is_answered() -> None:
    async with served() as server:
        reader, writer = await server.open()
        writer.write(get("/slow") + get("/second") + get("/third"))
        writer.write_eof()
        await asyncio.sleep(0.05)
        server.release.set()
        assert [answer.rpartition(b"\r\n")[2] for answer in await answers(reader, 3)] == [
            b"/slow",
            b"/second",
            b"/third",
        ]
        assert await closed(reader)
        writer.close()


@pytest.mark.parametrize("status", [400, 404, 405, 408, 413, 415])
@pytest.mark.parametrize("framing", ["content-length: 3000000", "transfer-encoding: chunked"])
@on_both_loops
async def test_a_refusal_reaches_a_client_that_still_sends(status: int, framing: str) -> None:
    async with served() as server:
        body = b"x" * 3_000_000
        if "chunked" in framing:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)

        def blocking() -> bytes:  # sends everything before it reads
            with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
                sock.sendall(f"POST /refuse/{status} HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n".encode() + body)
                return b"".join(iter(lambda: sock.recv(65536), b""))

        answer = await asyncio.to_thread(blocking)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert answer.count(b"connection: close\r\n") == 1
        assert answer.endswith(b"}"), "not the whole of it"


@on_both_loops
async def test_a_client_that_waits_for_100_is_told_to_go_on_only_when_its_body_is_wanted() -> None:
    async with served() as server:

        async def begun(path: str, length: int) -> tuple[Streams, bytes]:
            reader, writer = await server.open()
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
            writer.write(head.encode())
            return (reader, writer), await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)

        for path, length, status in (("/refuse/415", 5, 415), ("/body", 3_000_000, 413), ("/health", 5, 405)):
            (_, writer), first = await begun(path, length)
            assert first.startswith(f"HTTP/1.1 {status} ".encode())
            assert b"connection: close" in first
            writer.close()

        (reader, writer), first = await begun("/body", 5)
        assert first.startswith(b"HTTP/1.1 100 ")
        for part in (b"ab", b"cde"):
            writer.write(part)
            await asyncio.sleep(0.01)
        writer.write(get("/next"))
        assert [answer.partition(b"\r\n\r\n")[2] for answer in await answers(reader, 2)] == [b"5", b"/next"]
        writer.close()


@on_both_loops
async def test_reading_on_is_bounded_in_bytes_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_LINGER_BYTES", 1_000_000)
    monkeypatch.setattr(listening, "_LINGER_S", 0.3)
    head = b"POST /refuse/413 HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n"
    async with served() as server:
        reader, writer = await server.open()
        writer.write(head)
        await answers(reader)

        async def send() -> None:
            for _ in range(10_000):
                writer.write(b"x" * 65536)
                await writer.drain()

        with pytest.raises(ConnectionError):
            await send()
        reader, writer = await server.open()  # which says nothing more, and does not leave
        writer.write(head)
        await answers(reader)
        await until(lambda: _is(server, 1), 3)
        writer.close()


@on_both_loops
async def test_a_head_that_does_not_arrive_is_not_waited_for() -> None:
    async with served(HTTP_SERVER_READ_TIMEOUT="500ms") as server:
        silent, half, again = [await server.open() for _ in range(3)]
        half[1].write(b"GET / HTTP/1.1\r\nhost: x\r\n")
        again[1].write(get("/first"))
        await answers(again[0])
        again[1].write(b"GET /second")

        async def drip() -> None:
            while True:
                half[1].write(b"a: b\r\n")
                await asyncio.sleep(0.05)

        dripping = asyncio.ensure_future(drip())
        said = [await asyncio.wait_for(reader.read(), 3) for reader, _ in (silent, half, again)]
        dripping.cancel()
        assert said[0] == b""
        for answer in said[1:]:
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"connection: close" in answer
        for _, writer in (silent, half, again):
            writer.close()
        assert server.executed == ["/first"]


@on_both_loops
async def test_a_connection_is_kept_for_the_keep_alive_timeout_and_no_longer() -> None:
    async with served(HTTP_SERVER_KEEP_ALIVE_TIMEOUT="600ms", HTTP_SERVER_READ_TIMEOUT="20s") as server:
        reader, writer = await server.open()
        for path in ("/first", "/second"):
            writer.write(get(path))
            [answer] = await answers(reader)
            assert b"connection: close" not in answer
            answered = asyncio.get_running_loop().time()
            if path == "/first":
                await asyncio.sleep(0.3)
        assert await closed(reader)
        assert 0.6 <= asyncio.get_running_loop().time() - answered < 4
        assert server.executed == ["/first", "/second"]
        writer.close()


@on_both_loops
async def test_who_is_beyond_the_bound_of_one_address_is_told_so_and_others_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: list[str] = []
    sink = logger.add(lambda message: logged.append(str(message)), level="WARNING", format="{message}")
    async with served(HTTP_SERVER_MAX_CONNECTIONS="10") as server:
        held = [await server.open() for _ in range(5)]
        for _, writer in held:
            writer.write(get("/slow"))
        await until(lambda: _executed(server, 5))
        for _ in range(30):
            answer = await server.get("/other")
            assert answer.startswith(b"HTTP/1.1 503 "), answer
            assert b"retry-after: 1" in answer
        assert (await server.get("/health")).startswith(b"HTTP/1.1 200 ")
        assert (await server.get("/ready")).startswith(b"HTTP/1.1 200 ")
        reader, writer = await server.open(source="127.0.0.2")
        writer.write(get("/other"))
        assert (await answers(reader))[0].startswith(b"HTTP/1.1 200 ")
        writer.close()
        assert await server.metric('http_server_refused_total{reason="address"}') >= 30
        assert server.executed == ["/slow"] * 5 + ["/other"]
        server.release.set()
        for reader, writer in held:
            assert (await answers(reader))[0].startswith(b"HTTP/1.1 200 ")
            writer.close()
        await until(lambda: _serves(server))
    logger.remove(sink)
    said = [line for line in logged if "one address" in line]
    assert 1 <= len(said) <= 2, "not one line for each"


async def _executed(server: Served, count: int) -> bool:
    return len(server.executed) >= count


async def _serves(server: Served) -> bool:
    return (await server.get("/other")).startswith(b"HTTP/1.1 200 ")


@on_both_loops
async def test_a_trusted_proxy_is_not_one_client() -> None:
    async with served(HTTP_SERVER_MAX_CONNECTIONS="10", HTTP_SERVER_TRUSTED_PROXIES="127.0.0.0/8") as server:
        held = [await server.open() for _ in range(10)]
        for _, writer in held:
            writer.write(get("/slow"))
        await until(lambda: _executed(server, 10))
        assert (await server.get("/other")).startswith(b"HTTP/1.1 503 ")
        assert (await server.get("/health")).startswith(b"HTTP/1.1 200 ")
        for _, writer in held:
            writer.close()


@on_both_loops
async def test_idle_connections_make_room_oldest_first() -> None:
    async with served(HTTP_SERVER_MAX_CONNECTIONS="10") as server:
        kept = []
        for _ in range(5):
            reader, writer = await server.open()
            writer.write(get("/first"))
            await answers(reader)
            kept.append((reader, writer))
        assert (await server.get("/other")).startswith(b"HTTP/1.1 200 ")
        assert await closed(kept[0][0])
        kept[-1][1].write(get("/again"))
        assert (await answers(kept[-1][0]))[0].startswith(b"HTTP/1.1 200 ")
        for _, writer in kept:
            writer.close()


@on_both_loops
async def test_health_is_answered_at_once_among_many_who_say_nothing() -> None:
    async with served(HTTP_SERVER_MAX_CONNECTIONS="10") as server:
        silent = [await server.open() for _ in range(100)]
        for number, (_, writer) in enumerate(silent):
            if number % 2:
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n")
        async with asyncio.timeout(1):
            assert (await server.get("/health")).startswith(b"HTTP/1.1 200 ")
        for _, writer in silent:
            writer.close()
        await until(lambda: _is(server, 1), 2)


@on_both_loops
async def test_bodies_in_memory_are_bounded_in_all_and_for_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_BODIES", 2)
    async with served(HTTP_SERVER_MAX_BODY_BYTES="100000") as about:
        head = b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n"
        first = await about.open()
        first[1].write(head + b"x" * 80_000)
        await until(lambda: _executed(about, 1))
        await asyncio.sleep(0.05)
        refused = await about.open()
        refused[1].write(head + b"x" * 80_000)
        answer = (await answers(refused[0]))[0]
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert b"connection: close" in answer
        other = await about.open(source="127.0.0.2")
        other[1].write(head + b"x" * 90_000)
        assert (await answers(other[0]))[0].endswith(b"90000")
        first[1].write(b"x" * 10_000)
        assert (await answers(first[0]))[0].endswith(b"90000")
        again = await about.open()  # what was done with is given back
        again[1].write(head + b"x" * 90_000)
        assert (await answers(again[0]))[0].endswith(b"90000")
        for _, writer in (first, refused, other, again):
            writer.close()


@on_both_loops
async def test_the_backlog_is_as_long_as_asked_for() -> None:
    with bind("127.0.0.1", 0) as sock:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        with open("/proc/sys/net/core/somaxconn") as file:  # noqa: PTH123
            most = int(file.read())
        assert struct.unpack_from("I", info, 28)[0] == min(BACKLOG, most)


@on_both_loops
async def test_a_stop_serves_what_the_kernel_had_accepted() -> None:
    async with served() as server:
        socks = []
        await server.drain()  # which goes on when this task waits
        for number in range(50):
            sock = socket.create_connection(("127.0.0.1", server.port))
            sock.sendall(get(f"/{number}"))
            sock.setblocking(False)
            socks.append(sock)
        loop = asyncio.get_running_loop()
        for number, sock in enumerate(socks):
            with sock:
                answer = b""
                while part := await asyncio.wait_for(loop.sock_recv(sock, 65536), 5):
                    answer += part
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            assert answer.endswith(f"/{number}".encode())
            assert b"connection: close" in answer
        await asyncio.wait_for(server.running, 5)


@on_both_loops
async def test_a_stop_serves_a_request_that_has_just_come_on_an_idle_connection() -> None:
    async with served() as server:
        reader, writer = await server.open()
        writer.write(get("/first"))
        await answers(reader)
        await server.drain()
        os.write(writer.get_extra_info("socket").fileno(), get("/second"))
        assert (await answers(reader))[0].endswith(b"/second")
        assert await closed(reader)
        writer.close()


@on_both_loops
async def test_a_stop_serves_the_next_request_of_a_connection_that_was_just_used_and_closes_a_quiet_one() -> None:
    async with served() as server:
        reader, writer = await server.open()
        writer.write(get("/first"))
        await answers(reader)
        quiet, quiet_writer = await server.open()
        quiet_writer.write(get("/quiet"))
        await answers(quiet)
        await server.drain()
        await asyncio.sleep(0.3)  # the port is closed by now
        with pytest.raises(ConnectionError):
            await server.open()
        writer.write(get("/second"))
        answer = (await answers(reader))[0]
        assert answer.endswith(b"/second")
        assert b"connection: close" in answer
        assert await closed(reader, 2)
        assert await closed(quiet, 2)
        writer.close()
        quiet_writer.close()


@on_both_loops
async def test_a_request_that_came_while_the_loop_was_busy_is_served_after_the_keep_alive_timeout() -> None:
    async with served(HTTP_SERVER_KEEP_ALIVE_TIMEOUT="1s") as server:
        reader, writer = await server.open()
        writer.write(get("/first"))
        await answers(reader)
        os.write(writer.get_extra_info("socket").fileno(), get("/second"))
        time.sleep(1.3)  # the loop is busy
        assert (await answers(reader))[0].endswith(b"/second")
        writer.close()


@on_both_loops
async def test_a_stop_answers_the_first_of_pipelined_requests_in_full_and_executes_no_other() -> None:
    async with served() as server:
        reader, writer = await server.open()
        writer.write(get("/slow") + get("/second") * 1000)
        await until(lambda: _executed(server, 1))
        await server.drain()
        await asyncio.sleep(0.1)
        server.release.set()
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert answer.endswith(b"/slow")
        assert server.executed == ["/slow"]
        writer.close()
        await asyncio.wait_for(server.running, 5)


@on_both_loops
async def test_a_stop_waits_for_who_reads_a_large_answer_slowly() -> None:
    async with served() as server:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(get("/large"))
            await until(lambda: _executed(server, 1))
            await server.drain()

            def slowly() -> int:
                total = 0
                while data := sock.recv(65536):
                    total += len(data)
                    if total < 200_000:
                        time.sleep(0.05)
                return total

            assert await asyncio.to_thread(slowly) > 3_000_000
        await asyncio.wait_for(server.running, 5)


@on_both_loops
async def test_a_stop_answers_streams_in_flight_before_it_says_that_it_leaves() -> None:
    async with served(HTTP_SERVER_H2C="true") as server:
        reader, writer = await server.open()
        client = h2.connection.H2Connection()
        client.initiate_connection()
        headers = [(":method", "GET"), (":scheme", "http"), (":authority", "x")]
        client.send_headers(1, [*headers, (":path", "/slow")], end_stream=True)
        writer.write(client.data_to_send())
        await until(lambda: _executed(server, 1))
        await server.drain()
        await asyncio.sleep(0.1)
        server.release.set()
        raw = await asyncio.wait_for(reader.read(), 5)
        assert 0 < raw.index(b"/slow") < raw.index(b"\x00\x00\x08\x07\x00")  # the frame GOAWAY
        writer.close()
        await asyncio.wait_for(server.running, 5)


@on_both_loops
async def test_a_request_goes_on_when_its_client_has_left_and_a_stop_waits_for_it() -> None:
    async with served() as server:
        _, writer = await server.open()
        writer.write(get("/slow"))
        await until(lambda: _executed(server, 1))
        writer.transport.abort()
        await server.drain()
        await asyncio.sleep(0.1)
        assert not server.running.done()
        server.release.set()
        await asyncio.wait_for(server.running, 2)
