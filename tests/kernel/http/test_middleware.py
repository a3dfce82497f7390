"""The seven middlewares: their order, each alone, and all of them together."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from app.kernel.config import HttpServerSettings, LoggerSettings, load
from app.kernel.db import Transaction
from app.kernel.errors import NotFound, Unavailable
from app.kernel.http.asgi import App, Message, Receive, Scope, Send, respond
from app.kernel.http.middleware import stack
from app.kernel.http.middleware.alerting import Alerting
from app.kernel.http.middleware.error_handler import ErrorHandler
from app.kernel.http.middleware.logger import Logger
from app.kernel.http.middleware.meta_inject import MetaInject
from app.kernel.http.middleware.recovery import Recovery
from app.kernel.http.middleware.timeout import Timeout
from app.kernel.http.middleware.tracing import Tracing
from app.kernel.telemetry import logs
from app.kernel.telemetry.traces import current_context
from app.processes import sections
from tests.kernel.queue.conftest import Bench, bench
from tests.support.project import ROOT

__all__ = ["bench"]

SETTINGS = load(ROOT, sections(), {"APP_ENV": "test"})[HttpServerSettings]


Said = Callable[[int], Awaitable[list[dict[str, Any]]]]


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Said]:
    """Return the lines of the log when there are so many, and no more."""
    log = tmp_path / "log"
    logs.configure(LoggerSettings("info", "json", str(log)), "test")

    async def lines(count: int) -> list[dict[str, Any]]:
        logger.info("the last one")
        async with asyncio.timeout(10):
            while "the last one" not in log.read_text():
                await asyncio.sleep(0.01)
        found = [json.loads(line) for line in log.read_text().splitlines()]
        assert len(found) == count + 1, found
        return found[:-1]

    yield lines
    logger.remove()


class Sent:
    """What was sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        (start,) = [m for m in self.messages if m["type"] == "http.response.start"]
        return start["status"]

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages)

    def header(self, name: bytes) -> bytes | None:
        return dict(self.messages[0]["headers"]).get(name)


def scope(**changes: Any) -> Scope:
    return {"type": "http", "method": "GET", "path": "/x", "headers": [], "http_version": "1.1", **changes}


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def call(app: App, **changes: Any) -> Sent:
    sent = Sent()
    await app(scope(**changes), receive, sent)
    return sent


async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, 200, b"text/plain", b"fine")


def failing(error: Exception, *, after_start: bool = False) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if after_start:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    return app


def whole(app: App, **changes: Any) -> App:
    return stack(app, replace(SETTINGS, **changes))


def test_the_order_is_that_of_the_blueprint() -> None:
    names, inner = [], whole(fine)
    while inner is not fine:
        names.append(type(inner).__name__)
        inner = inner._app
    assert names == ["Recovery", "Tracing", "Timeout", "MetaInject", "Alerting", "Logger", "ErrorHandler"]


async def test_recovery_answers_for_what_failed_before_the_response_started() -> None:
    sent = await call(Recovery(failing(RuntimeError("hunter2")), debug=False))
    assert sent.status == 500
    assert b"hunter2" not in sent.body
    assert b"hunter2" in (await call(Recovery(failing(RuntimeError("hunter2")), debug=True))).body


@pytest.mark.parametrize("wrap", [lambda app: Recovery(app, debug=False), whole])
async def test_a_response_that_has_started_can_only_be_cut(wrap: Callable[[App], App]) -> None:
    sent = Sent()
    with pytest.raises(RuntimeError):
        await wrap(failing(RuntimeError("late"), after_start=True))(scope(), receive, sent)
    assert sent.status == 200


@pytest.mark.parametrize(("error", "status"), [(NotFound("no"), 404), (Unavailable("away", retry_after_s=3), 503)])
async def test_the_error_handler_answers_refusals_and_lets_the_rest_through(error: Exception, status: int) -> None:
    assert (await call(ErrorHandler(failing(error)))).status == status
    with pytest.raises(RuntimeError):
        await call(ErrorHandler(failing(RuntimeError())))


async def test_timeout_cancels_what_takes_too_long() -> None:
    ended: list[str] = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    sent = await call(Timeout(slow, 0.02))
    assert (sent.status, ended) == (504, ["cancelled"])
    assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]


async def test_timeout_cuts_a_response_that_has_started() -> None:
    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0.005)

    sent = Sent()
    with pytest.raises(TimeoutError):
        await Timeout(endless, 0.05)(scope(), receive, sent)
    assert sent.status == 200
    assert sent.body


async def test_a_client_that_leaves_is_not_taken_for_a_timeout() -> None:
    entered = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        entered.set()
        await asyncio.sleep(60)

    sent = Sent()
    task = asyncio.ensure_future(whole(slow)(scope(), receive, sent))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sent.messages == []


async def test_an_answer_in_time_is_passed_on_as_it_is() -> None:
    async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"a", b"b", b"c"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    sent = await call(whole(streaming))
    assert (sent.status, sent.body) == (200, b"abc")
    assert [m["type"] for m in sent.messages] == ["http.response.start"] + ["http.response.body"] * 4


async def test_every_answer_has_a_request_id() -> None:
    given = await call(MetaInject(fine), headers=[(b"x-request-id", b"mine")])
    assert given.header(b"x-request-id") == b"mine"
    for app in (fine, failing(NotFound("no")), failing(RuntimeError("no"))):
        sent = await call(whole(app), headers=[(b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")])
        assert sent.header(b"x-request-id")
        assert app is fine or json.loads(sent.body)["trace_id"] == "a" * 32

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    late = await call(whole(slow, handle_timeout=0.02))
    assert late.status == 504
    assert late.header(b"x-request-id") == json.loads(late.body)["request_id"].encode()


async def test_tracing_continues_the_trace_of_the_caller_and_begins_one_otherwise() -> None:
    found: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.append(current_context() or "")

    for given in (
        b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-00",
        b"00-xyz-01",
        b"00-" + b"0" * 32 + b"-" + b"b" * 16 + b"-00",
    ):
        await call(Tracing(app), headers=[(b"traceparent", given)])
    await call(Tracing(app))
    ids = [text.split("-")[1] for text in found]
    assert ids[0] == "a" * 32
    assert len(set(ids)) == 4
    assert "0" * 32 not in ids
    assert current_context() is None


async def test_alerting_tells_what_nobody_expected_once_and_lets_it_through(said: Said) -> None:
    with pytest.raises(RuntimeError):
        await call(Alerting(failing(RuntimeError("boom"))), state={"route": "/x/{id}"})
    (line,) = await said(1)
    assert (line["level"], line["message"], line["route"]) == ("error", "unhandled RuntimeError", "/x/{id}")
    assert line["exception"].endswith("RuntimeError: boom\n")


async def test_alerting_tells_of_a_5xx_of_a_route_but_not_of_a_probe(said: Said) -> None:
    async def unready(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 503, b"text/plain", b"")

    await call(Alerting(unready))
    await call(Alerting(fine), state={"route": "/fine"})
    await call(Alerting(unready), state={"route": "/x"})
    (line,) = await said(1)
    assert line["message"] == "GET /x was answered 503"


async def test_the_logger_writes_one_line_with_the_status_that_was_sent(said: Said) -> None:
    await call(Logger(fine))
    await call(Recovery(Logger(failing(RuntimeError())), debug=False))
    with pytest.raises(RuntimeError):
        await call(Logger(failing(RuntimeError(), after_start=True)))
    lines = await said(3)
    assert [line["message"].split(" in ")[0] for line in lines] == ["GET /x 200", "GET /x 500", "GET /x 200"]


async def test_every_line_of_a_request_has_its_id_also_when_it_took_too_long(said: Said) -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        logger.info("working")
        await asyncio.sleep(60)

    await call(whole(slow, handle_timeout=0.02), headers=[(b"x-request-id", b"mine")])
    lines = await said(3)
    assert [line["message"].split(" in ")[0] for line in lines] == [
        "working",
        "GET /x was not answered within 0.02 s",
        "GET /x 504",
    ]
    assert {line["request_id"] for line in lines} == {"mine"}


async def test_a_request_that_took_too_long_leaves_no_transaction_and_no_connection_behind(bench: Bench) -> None:
    await bench.db.run("CREATE TABLE t (n int)")

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        async with bench.db.begin() as tx:
            await write(tx)
            await asyncio.sleep(60)

    async def write(tx: Transaction) -> None:
        await tx.run("INSERT INTO t VALUES (1)")

    async def requests(count: int) -> list[Sent]:
        waiting: list[Awaitable[Sent]] = [call(whole(slow, handle_timeout=0.2)) for _ in range(count)]
        return await asyncio.gather(*waiting)

    assert [sent.status for sent in await requests(20)] == [504] * 20  # twice as many as there are connections
    assert await bench.rows("SELECT count(*) FROM t") == [(0,)]
    idle = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state LIKE 'idle in transaction%%'"
    )
    assert await bench.rows(idle) == [(0,)]
    assert [row for (row,) in await asyncio.gather(*(bench.db.one("SELECT 1") for _ in range(10)))] == [1] * 10  # type: ignore[misc]
