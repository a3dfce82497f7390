"""Pages, files and streams of events, over a real socket."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from app.kernel.actions import Database, declared, read
from app.kernel.actions.operation import ActionOperation
from app.kernel.audit import Audit
from app.kernel.config import HttpServerSettings
from app.kernel.http.asgi import App
from app.kernel.http.openapi import openapi
from app.kernel.http.results import EventStream, File, Html, ServerSentEvent
from app.kernel.http.routes import router
from app.kernel.telemetry import metrics
from app.processes import load_settings
from tests.support.serving import Serving, serving


@dataclass(frozen=True)
class Feature:
    """What is no JSON. `ended` has what was closed."""

    ended: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    more: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    @read("t.page", GET="/page", public=True)
    async def page(self) -> Html:
        """Show a page."""
        return Html("<p>ü</p>")

    @read("t.file", GET="/file", public=True)
    async def file(self) -> File:
        """Return a file."""
        return File(b"a,b\n", "text/csv", 'ü "1".csv')

    @read("t.parts", GET="/parts", public=True, timeout_s=60)
    async def parts(self) -> File:
        """Return a file in parts."""
        return File(self._parts())

    async def _parts(self) -> AsyncGenerator[bytes]:
        try:
            for number in range(3):
                yield b"%d" % number
            while (part := await self.more.get()) != "end":
                yield part.encode()
        finally:
            self.ended.put_nowait("parts")

    @read("t.events", GET="/events", public=True)
    async def events(self) -> EventStream:
        """Follow what happens."""
        return EventStream(self._events(), keep_alive_s=0.05)

    @read("t.briefly", GET="/briefly", public=True)
    async def briefly(self) -> EventStream:
        """Follow what happens for a moment."""
        return EventStream(self._events(), longest_s=0.2)

    async def _events(self) -> AsyncGenerator[ServerSentEvent]:
        try:
            while (text := await self.more.get()) != "end":
                if text == "fail":
                    raise RuntimeError("broken")
                yield ServerSentEvent(text, name="said", id="7")
        finally:
            self.ended.put_nowait("events")


@dataclass
class Served:
    feature: Feature
    serving: Serving

    async def open(self, path: str, method: str = "GET") -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        """Ask; return the connection, and the header of the answer."""
        reader, writer = await self.serving.connect()
        writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        async with asyncio.timeout(10):
            return reader, writer, (await reader.readuntil(b"\r\n\r\n")).decode().lower()

    async def ended(self) -> str:
        async with asyncio.timeout(10):
            return await self.feature.ended.get()


def routes(feature: Feature) -> list[ActionOperation]:
    db: Database = None  # type: ignore[assignment] - none of these asks for it
    return [
        ActionOperation(action, getattr(feature, name), signature, db, Audit())
        for name, action, signature in declared(Feature)
    ]


async def no_denied(*_: object) -> None: ...


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    feature = Feature()
    app: App = router(routes(feature), {}, no_denied, load_settings()[HttpServerSettings])
    async with serving(app, HTTP_SERVER_HANDLE_TIMEOUT="0.3", PROCESS_DRAIN_DELAY="0") as running:
        yield Served(feature, running)


@asynccontextmanager
async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[AsyncIterator[bytes]]:
    """Provide the parts of a chunked body; the end of the connection before its last chunk is an error."""

    async def read_them() -> AsyncIterator[bytes]:
        while size := int(await reader.readline(), 16):
            yield (await reader.readexactly(size + 2))[:-2]

    async with asyncio.timeout(10):
        yield read_them()


async def test_a_page_says_what_it_may_load(served: Served) -> None:
    reader, writer, head = await served.open("/page")
    assert await reader.readexactly(9) == "<p>ü</p>".encode()
    writer.close()
    assert "content-type: text/html; charset=utf-8" in head
    assert "content-security-policy: default-src 'none'; style-src 'self'" in head
    assert "x-content-type-options: nosniff" in head


async def test_a_file_has_a_name_and_a_type(served: Served) -> None:
    reader, writer, head = await served.open("/file")
    assert await reader.readexactly(4) == b"a,b\n"
    writer.close()
    assert "content-type: text/csv" in head
    assert "content-disposition: attachment; filename*=utf-8''%c3%bc%20%221%22.csv" in head
    assert "x-content-type-options: nosniff" in head


async def test_a_file_in_parts_may_take_as_long_as_its_route_says_and_survives_a_drain(served: Served) -> None:
    reader, writer, head = await served.open("/parts")
    assert "content-disposition: inline" in head
    async with chunks(reader) as parts:
        assert [await anext(parts) for _ in range(3)] == [b"0", b"1", b"2"]
        served.serving.stop.set()
        await asyncio.sleep(0.4)  # beyond the handle timeout
        served.feature.more.put_nowait("rest")
        served.feature.more.put_nowait("end")
        assert [part async for part in parts] == [b"rest"]
    writer.close()


async def test_a_file_in_parts_is_closed_when_its_client_leaves(served: Served) -> None:
    reader, writer, _ = await served.open("/parts")
    async with chunks(reader) as parts:
        assert await anext(parts) == b"0"
    reset(writer)
    async with asyncio.timeout(10):
        while served.feature.ended.empty():
            served.feature.more.put_nowait("part")
            await asyncio.sleep(0.01)
    assert await served.ended() == "parts"


def reset(writer: asyncio.StreamWriter) -> None:
    """Leave as a client that crashes does."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_events_come_as_they_happen_beyond_the_handle_timeout_with_comments_between(served: Served) -> None:
    reader, writer, head = await served.open("/events")
    assert "content-type: text/event-stream" in head
    assert "cache-control: no-store" in head
    comments = 0
    async with chunks(reader) as parts:
        while comments < 8:  # 0.4 s
            assert await anext(parts) == b":\n\n"
            comments += 1
        served.feature.more.put_nowait("one\ntwo")
        found = [await anext(parts)]
        while found[-1] == b":\n\n":
            found.append(await anext(parts))
        assert found[-1] == b"event: said\nid: 7\ndata: one\ndata: two\n\n"
        served.feature.more.put_nowait("end")
        assert {part async for part in parts} <= {b":\n\n"}
    writer.close()
    assert await served.ended() == "events"


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_stream_ends_when_its_client_leaves(served: Served, how: str) -> None:
    _, writer, _ = await served.open("/events")
    if how == "reset":
        reset(writer)
    else:
        writer.close()
    assert await served.ended() == "events"


async def test_a_stream_ends_whole_when_the_server_closes(served: Served) -> None:
    reader, writer, _ = await served.open("/events")
    served.serving.stop.set()
    async with chunks(reader) as parts:
        assert {part async for part in parts} <= {b":\n\n"}
    async with asyncio.timeout(10):
        await served.serving.running
    writer.close()
    assert await served.ended() == "events"


async def test_a_stream_lasts_no_longer_than_declared(served: Served) -> None:
    reader, writer, _ = await served.open("/briefly")
    async with chunks(reader) as parts:
        [part async for part in parts]
    writer.close()
    assert await served.ended() == "events"


async def test_a_stream_that_fails_is_cut_and_the_process_goes_on(served: Served) -> None:
    reader, writer, _ = await served.open("/events")
    served.feature.more.put_nowait("fail")
    with pytest.raises((ValueError, asyncio.IncompleteReadError)):  # no last chunk
        async with chunks(reader) as parts:
            [part async for part in parts]
    writer.close()
    assert await served.ended() == "events"
    _, writer, head = await served.open("/page")
    writer.close()
    assert "200" in head


@pytest.mark.parametrize("text", ["a\ndata: forged", "a\r", "\0"])
def test_the_name_and_the_id_of_an_event_cannot_add_lines(text: str) -> None:
    for event in (ServerSentEvent("", name=text), ServerSentEvent("", id=text)):
        with pytest.raises(ValueError, match="single lines"):
            event.encoded()


async def test_head_asks_for_no_events(served: Served) -> None:
    _, writer, head = await served.open("/events", "HEAD")
    writer.close()
    assert "content-type: text/event-stream" in head


async def test_a_stream_is_measured_until_it_begins(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics._REQUEST_DURATION, "_durations", {})
    began = time.monotonic()
    reader, writer, _ = await served.open("/events")
    answered_s = time.monotonic() - began
    await asyncio.sleep(2 * answered_s + 0.2)  # it lasts for longer than it took to begin, however slow the machine is
    served.feature.more.put_nowait("end")
    async with chunks(reader) as parts:
        [part async for part in parts]
    writer.close()
    await served.ended()
    async with asyncio.timeout(10):
        while 'route="/events"' not in (text := metrics.exposition()[0].decode()):
            await asyncio.sleep(0.01)
    line = next(line for line in text.splitlines() if "duration_seconds_sum" in line and "/events" in line)
    assert float(line.split()[-1]) < answered_s + 0.2


def test_openapi_says_what_is_sent() -> None:
    paths = openapi(routes(Feature()), "t")["paths"]
    sent = {path: list(methods["get"]["responses"]["200"]["content"]) for path, methods in paths.items()}
    assert sent["/page"] == ["text/html"]
    assert sent["/file"] == ["*/*"]
    assert sent["/events"] == ["text/event-stream"]
