"""The client for other services, against sockets that behave badly; and the webhooks that go through it."""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx2
import pytest
import requests
from opentelemetry import context
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from pydantic import SecretStr

from app.kernel.errors import NotFound, Unavailable
from app.kernel.http import client as client_module
from app.kernel.http.client import HttpClient
from app.kernel.telemetry import traces
from app.kernel.telemetry.spans import ExportedSpan
from app.kernel.telemetry.traces import trace_requests
from app.modules.platform.domain.messages import Message
from app.modules.platform.recipients import NotifyRecipients, is_webhook

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
REMOTE = SpanContext(0xABC, 0xDEF, True, TraceFlags(1))


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    """Serve each connection with `serve`, which gets it after the header fields of the first request."""
    left: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left.append(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in left:
            writer.transport.abort()
        server.close()


def answer(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"content-length: {len(body)}", *fields])
    return head.encode() + b"\r\n\r\n" + body


def always(data: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(data)
            await reader.readuntil(b"\r\n\r\n")

    return serve


async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
    writer.close()


async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example.org ESMTP\r\n\r\n")


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Never be silent for long, and never end."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        writer.write(b".")
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("serve", [nothing, hang_up, half, nonsense, drip])
async def test_a_service_that_does_not_answer_is_unavailable_in_time(serve: Serve) -> None:
    async with serving(serve) as url, HttpClient() as http, asyncio.timeout(10):
        with pytest.raises(Unavailable, match="another service did not answer"):
            await http.get(url, extensions={"total_s": 0.3})


async def test_each_phase_has_a_limit_of_its_own_and_a_service_that_is_not_there_is_unavailable() -> None:
    async with serving(nothing) as url, HttpClient() as http, asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await http.get(url, timeout=httpx2.Timeout(10, read=0.1))
    async with HttpClient() as http:
        with pytest.raises(Unavailable):
            await http.get("http://127.0.0.1:1/")
        assert http.timeout == httpx2.Timeout(connect=3, write=10, read=10, pool=2)


async def test_connections_are_kept_and_bounded() -> None:
    connections = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await always(answer(b"ok"))(reader, writer)

    async with serving(count) as url, HttpClient() as http:
        for _ in range(5):
            assert (await http.get(url)).text == "ok"
    assert connections == 1
    async with serving(nothing) as url, HttpClient() as http:
        http._transport = httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_connections=1))  # as the pool has, smaller
        held = asyncio.ensure_future(http.get(url))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await http.get(url, timeout=httpx2.Timeout(10, pool=0.1))
        held.cancel()
        await asyncio.wait({held})


async def test_an_answer_is_bounded_also_when_it_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MOST_BYTES", 1000)
    async with HttpClient() as http:
        async with serving(always(answer(b"x" * 1000))) as url:
            assert len((await http.get(url)).content) == 1000
        async with serving(always(answer(b"x" * 1001))) as url:
            with pytest.raises(Unavailable, match="larger than 1000 bytes"):
                await http.get(url)
        bomb = gzip.compress(bytes(10_000_000))
        async with serving(always(answer(bomb[:900], "content-encoding: gzip"))) as url:
            with pytest.raises(Unavailable, match="compressed"):
                await http.get(url)
        async with serving(always(answer(b"x" * 5000))) as url, http.stream("GET", url) as response:
            assert [chunk async for chunk in response.aiter_bytes(5000)] == [b"x" * 5000]


async def test_redirects_are_not_followed_and_cookies_are_not_kept() -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(answer(b"", "set-cookie: a=1", "location: /elsewhere", status="302 Found"))
            asked.append(await reader.readuntil(b"\r\n\r\n"))

    async with serving(serve) as url, HttpClient() as http:
        for _ in range(3):
            assert (await http.get(url)).status_code == 302
        assert not http.cookies
    assert len(asked) == 2
    assert not [head for head in asked if b"cookie" in head.lower() or b"elsewhere" in head]


async def test_a_span_has_the_host_and_the_status_and_says_nothing_of_path_or_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[ExportedSpan] = []
    monkeypatch.setattr(traces, "_ratio", 1.0)
    monkeypatch.setattr(traces, "_ended", ended.append, raising=False)
    async with HttpClient() as http:
        with traces.continued(REMOTE, "request", SpanKind.SERVER):
            async with serving(always(answer(b"", status="503 Busy"))) as url:
                await http.get(f"{url.replace('//', '//user:hunter2@')}/hunter2?key=hunter2")
            with pytest.raises(Unavailable):
                await http.get("http://127.0.0.1:1/hunter2")
    busy, gone, request = ended
    assert busy.kind is SpanKind.CLIENT
    assert busy.parent is not None
    assert busy.parent.span_id == request.get_span_context().span_id
    assert busy.attributes == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "http.response.status_code": 503,
    }
    assert (busy.name, busy.status.status_code) == ("GET", StatusCode.ERROR)
    assert (gone.status.status_code, gone.status.description) == (StatusCode.ERROR, "ConnectError")


async def test_no_more_than_fifty_hosts_are_named_in_metrics() -> None:
    async with HttpClient(transport=httpx2.MockTransport(lambda _: httpx2.Response(204))) as http:
        for number in range(60):
            await http.get(f"http://host{number}.test/")
        assert [http._known(f"host{number}.test") for number in (0, 49, 50)] == ["host0.test", "host49.test", "other"]


WEBHOOKS = [
    "json://host",
    "json://host:8080/a/b",
    "jsons://user:pa%40ss@host/",
    "jsons://host/?+X-Key=abc",
    "jsons://host/?%2BX-Key=abc",
]
OTHERS = [
    "slack://a/b/c",
    "json://host/?method=PUT",
    "json://host/?:title=text",
    "json://",
    "json://host:x/",
    "mailto://a",
]


def test_webhooks_without_options_are_ours_and_the_rest_is_apprises() -> None:
    assert all(map(is_webhook, WEBHOOKS))
    assert not any(map(is_webhook, OTHERS))


async def told(url: str, status: int = 200) -> tuple[httpx2.Request, Exception | None]:
    asked: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(status)

    async with HttpClient(transport=httpx2.MockTransport(handler)) as http:
        recipients = NotifyRecipients(SecretStr(url), http)
        (name,) = recipients.names()
        problem = None
        try:
            await recipients.send(Message(name, "a title", "a body"))
        except Unavailable as error:
            problem = error
        with pytest.raises(NotFound):
            await recipients.send(Message("nobody", "a title", "a body"))
    (request,) = asked
    return request, problem


async def test_a_webhook_gets_the_message_with_the_credentials_and_header_fields_of_its_url() -> None:
    request, problem = await told("jsons://user:pa%40ss@host:8443/a%20b?+X-Key=a%2Bb&+X-Other=c")
    assert problem is None
    assert request.method == "POST"
    assert str(request.url).endswith("host:8443/a%20b")
    assert request.headers["authorization"] == "Basic dXNlcjpwYUBzcw=="
    assert (request.headers["x-key"], request.headers["x-other"]) == ("a+b", "c")
    assert request.headers["traceparent"]
    message = {"version": "1.0", "title": "a title", "message": "a body", "attachments": [], "type": "info"}
    assert json.loads(request.content) == message


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_a_webhook_that_does_not_accept_is_told_of_without_its_url(status: int) -> None:
    _, problem = await told("json://host/hunter2", status)
    assert problem is not None
    assert "did not accept" in str(problem)
    assert "hunter2" not in str(problem)


async def test_requests_which_apprise_sends_with_continues_the_trace_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests.Session, "send", requests.Session.send)
    trace_requests.__wrapped__()
    heads: list[bytes] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(b"", "connection: close"))
        writer.close()

    remote = SpanContext(0xABC, 0xDEF, True, TraceFlags(1), TraceState([("foo", "1")]))
    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        await asyncio.to_thread(requests.get, url, timeout=10)
        token = context.attach(context.set_value(context._SUPPRESS_INSTRUMENTATION_KEY, True))
        await asyncio.to_thread(requests.get, url, timeout=10)
        context.detach(token)
        with traces.continued(remote, "request", SpanKind.SERVER):
            for _ in range(2):
                await asyncio.to_thread(requests.get, url, timeout=10)
    outside, exporter, *inside = heads
    assert b"traceparent: 00-" in outside
    assert b"traceparent" not in exporter
    parents = {re.search(rb"traceparent: 00-(\w{32})-(\w{16})-01\r\n", head)[0] for head in inside}  # type: ignore[index]
    assert len(parents) == 2
    assert all(f"00-{0xABC:032x}-".encode() in head and b"tracestate: foo=1\r\n" in head for head in inside)
