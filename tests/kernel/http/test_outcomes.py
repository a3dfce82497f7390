"""However a request ends, its answer, its log line, its measurement, its span and the sentinel say the same."""

import asyncio
import json
import re
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from app.kernel.config import LoggerSettings
from app.kernel.errors import Invalid, RateLimited, Unauthenticated
from app.kernel.http.asgi import Receive, Scope, Send, respond
from app.kernel.http.codecs import read_body
from app.kernel.http.problems import HttpProblem
from app.kernel.telemetry import logs, metrics, traces
from app.kernel.telemetry.spans import ExportedSpan
from tests.support.serving import serving

Seen = Callable[[str], "Outcome"]


class Outcome:
    """What was recorded of the one request to a route."""

    def __init__(self, lines: list[dict[str, Any]], spans: list[ExportedSpan], route: str) -> None:
        (self.line,) = [line for line in lines if line.get("route") == route and "duration_ms" in line]
        (self.span,) = [span for span in spans if span.attributes.get("http.route") == route]
        self.alerts = [line for line in lines if line["level"] == "error" and "duration_ms" not in line]
        text = metrics.exposition()[0].decode()
        self.measured = re.findall(rf'http_server_requests_total{{.*route="{route}",status="(\d+)"}} (\S+)', text)

    def status(self) -> int:
        """Return the one status; fail if there are several."""
        found = {self.line["status"], self.span.attributes["http.response.status_code"]}
        found |= {int(status) for status, _ in self.measured}
        found.add(int(re.fullmatch(r"\S+ \S+ (\d+) in [\d.]+ ms", self.line["message"])[1]))  # type: ignore[index]
        (status,) = found
        assert [count for _, count in self.measured] == ["1.0"]
        return status


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Return what was recorded of a route."""
    log, spans = tmp_path / "log", list[ExportedSpan]()
    logs.configure(LoggerSettings("info", "json", str(log)), "test")
    monkeypatch.setattr(metrics._REQUEST_DURATION, "_durations", {})
    monkeypatch.setattr(traces, "_ratio", 1.0)
    monkeypatch.setattr(traces, "_ended", spans.append, raising=False)

    def of(route: str) -> Outcome:
        return Outcome([json.loads(line) for line in log.read_text().splitlines()], spans, route)

    yield of
    logger.remove()


ENTERED: dict[str, asyncio.Event] = {}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """End as the path says."""
    path = scope["path"]
    scope["state"]["route"] = path
    if path in ENTERED:
        ENTERED[path].set()
    kind, _, what = path[1:].partition("/")
    if kind in ("late", "cut"):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    if kind == "body":
        await read_body(scope, receive, 1000, 0.2)
    if kind == "refuse":
        raise REFUSALS[what]
    if what == "slowly":
        await asyncio.sleep(60)
    elif what == "failing":
        raise RuntimeError("broken")
    await respond(send, 200, b"text/plain", b"fine")


REFUSALS: dict[str, Exception] = {
    "401": Unauthenticated("no"),
    "404": HttpProblem(404),
    "422": Invalid("no"),
    "429": RateLimited("no", retry_after_s=3),
}


def get(path: str, *more: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: x", "connection: close", *more, "", ""]).encode()


def answered(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


async def until(seen: Seen, route: str) -> Outcome:
    """Wait for the records of a route."""
    async with asyncio.timeout(10):
        while True:
            try:
                return seen(route)
            except (ValueError, FileNotFoundError):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("route", "status", "level"),
    [
        ("/plain/fine", 200, "info"),
        ("/refuse/401", 401, "warning"),
        ("/refuse/404", 404, "warning"),
        ("/refuse/422", 422, "warning"),
        ("/refuse/429", 429, "warning"),
        ("/plain/failing", 500, "error"),
        ("/plain/slowly", 504, "error"),
        ("/body/slow", 408, "warning"),
    ],
)
async def test_what_is_answered_is_what_is_recorded(seen: Seen, route: str, status: int, level: str) -> None:
    more = ["content-length: 5"] if route == "/body/slow" else []
    async with serving(app, HTTP_SERVER_HANDLE_TIMEOUT="500ms") as server:
        answer = await server.ask(get(route, *more))
        found = await until(seen, route)
    assert answered(answer) == found.status() == status
    assert found.line["level"] == level
    assert found.line["method"] == "GET"
    assert found.line["client_address"] == "127.0.0.1"
    assert found.line["bytes"] == len(answer.partition(b"\r\n\r\n")[2])
    assert found.line["duration_ms"] >= 0
    assert f"x-request-id: {found.line['request_id']}".encode() in answer
    assert f"x-trace-id: {found.line['trace_id']}".encode() in answer
    assert b"x-content-type-options: nosniff" in answer
    assert (b"cache-control: no-store" in answer) == (status != 200)
    assert len(found.alerts) == (status >= 500)
    assert found.span.status.is_ok == (status < 500)


@pytest.mark.parametrize("how", ["failing", "slowly"])
async def test_an_answer_that_is_cut_is_recorded_as_it_began(seen: Seen, how: str) -> None:
    async with serving(app, HTTP_SERVER_HANDLE_TIMEOUT="200ms") as server:
        answer = await server.ask(get(f"/cut/{how}"))
        found = await until(seen, f"/cut/{how}")
    assert answer.endswith(b"begun")
    assert answered(answer) == found.status() == 200
    assert (found.line["level"], found.line["cut"], found.line["bytes"]) == ("error", True, 5)
    assert not found.span.status.is_ok


@pytest.mark.parametrize("path", ["/plain/fine", "/plain/failing", "/body/slow"])
async def test_a_request_whose_client_has_left_is_499_everywhere(seen: Seen, path: str) -> None:
    gone = asyncio.Event()

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        if not path.startswith("/body"):
            scope["state"]["route"] = path
            ENTERED[path].set()
            await gone.wait()
            while (await receive())["type"] != "http.disconnect":
                pass
        await app(scope, receive, send)

    ENTERED[path] = asyncio.Event()
    async with serving(waiting) as server:
        _, writer = await server.connect()
        writer.write(get(path, *(["content-length: 5"] if path == "/body/slow" else [])))
        async with asyncio.timeout(10):
            await ENTERED[path].wait()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # to reset, not to say goodbye
        writer.close()
        gone.set()
        found = await until(seen, path)
    assert found.status() == 499
    assert (found.line["level"], found.line["bytes"]) == ("warning", 0)


@pytest.mark.parametrize(("path", "status"), [("/plain/fine", 200), ("/body/short", 400)])
async def test_a_client_that_has_only_finished_sending_is_answered(seen: Seen, path: str, status: int) -> None:
    async with serving(app) as server:
        reader, writer = await server.connect()
        writer.write(get(path, *(["content-length: 5"] if status == 400 else [])))
        writer.write_eof()
        answer = await reader.read()
        found = await until(seen, path)
        writer.close()
    assert answered(answer) == found.status() == status


async def test_what_is_cancelled_at_the_end_of_the_grace_period_is_503_everywhere(seen: Seen) -> None:
    path = "/plain/slowly"
    ENTERED[path] = asyncio.Event()
    async with serving(app) as server:
        asking = asyncio.ensure_future(server.ask(get(path)))
        async with asyncio.timeout(10):
            await ENTERED[path].wait()
        server.running.cancel()  # as the process does
        answer = await asking
        found = await until(seen, path)
    assert answered(answer) == found.status() == 503
    assert b"x-trace-id: " in answer
    assert b"retry-after: 1" in answer


async def test_who_finds_no_room_is_answered_like_everybody_else(seen: Seen) -> None:
    async with serving(app, HTTP_SERVER_MAX_CONNECTIONS="10") as server:
        holding = [asyncio.ensure_future(server.ask(get("/plain/slowly"))) for _ in range(10)]
        async with asyncio.timeout(10):
            while answered(answer := await server.ask(get("/plain/fine"))) != 503:
                pass
        server.running.cancel()
        await asyncio.gather(*holding, return_exceptions=True)
    for field in (b"x-request-id: ", b"x-trace-id: ", b"retry-after: 1", b"cache-control: no-store"):
        assert field in answer
    assert 'http_server_requests_total{method="GET",route="none",status="503"}' in metrics.exposition()[0].decode()


async def test_what_cannot_be_read_is_recorded_like_every_other_answer(seen: Seen) -> None:
    async with serving(app) as server:
        answer = await server.ask(b"GET /x HTTP/1.1\r\nhost: a b\r\n\r\n")
    assert answered(answer) == 400
    text = metrics.exposition()[0].decode()
    assert 'http_server_requests_total{method="GET",route="none",status="400"}' in text


async def test_an_answer_to_head_is_that_to_get_without_its_body(seen: Seen) -> None:
    async with serving(app) as server:
        answer = await server.ask(get("/plain/fine").replace(b"GET", b"HEAD"))
        found = await until(seen, "/plain/fine")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert (answered(answer), body, found.line["bytes"]) == (200, b"", 0)
    assert b"content-length: 4" in head


async def test_requests_one_after_the_other_are_answered_in_turn() -> None:
    async with serving(app) as server:
        both = get("/plain/first").replace(b"connection: close\r\n", b"") + get("/refuse/404")
        answer = await server.ask(both)
    assert re.findall(rb"HTTP/1.1 ([0-9]+) ", answer) == [b"200", b"404"]


async def test_the_host_of_an_absolute_target_replaces_the_header() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        await respond(send, 200, b"text/plain", repr((hosts, scope["path"], scope["query_string"])).encode())

    async with serving(echo) as server:
        answer = await server.ask(
            b"GET http://a.example:81/p%20q?r=%2F HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\r\n"
        )
    assert answer.endswith(repr(([b"a.example:81"], "/p q", b"r=%2F")).encode())
