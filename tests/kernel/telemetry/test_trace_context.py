"""W3C Trace Context, level 1: the fields alone, and a real process between a client and the service that it calls."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.propagators.textmap import DefaultGetter
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.kernel.telemetry.trace_context import from_headers, parsed, traceparent, tracestate
from tests.conftest import TestDatabase
from tests.kernel.telemetry.collector import collecting
from tests.support.project import ROOT, Project, add_feature, eventually

TRACE, SPAN = "12345678901234567890123456789012", "1234567890123456"
VALID = f"00-{TRACE}-{SPAN}-01"
WELL_FORMED = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]")
KEY = "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
VALUE = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) not in ",=")
NUMBERED = [f"bar{number:02}={number:02}" for number in range(1, 34)]

ACCEPTED = [
    VALID,
    f"00-{TRACE}-{SPAN}-00",
    f"00-{TRACE}-{SPAN}-ff",
    f"cc-{TRACE}-{SPAN}-01",
    f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like",
    f"01-{TRACE}-{SPAN}-01-",
    f" {VALID}",
    f"\t{VALID}",
    f"{VALID} ",
    f"\t {VALID} \t",
]
REFUSED = [
    "",
    f"{VALID}.",
    f"{VALID}-",
    f"{VALID}-what-the-future-will-be-like",
    f"cc-{TRACE}-{SPAN}-01.what-the-future-will-be-like",
    f"cc-{TRACE}-{SPAN}-011",
    f"ff-{TRACE}-{SPAN}-01",
    f"ff-{TRACE}-{SPAN}-01-x",
    f"FF-{TRACE}-{SPAN}-01",
    f".0-{TRACE}-{SPAN}-01",
    f"0.-{TRACE}-{SPAN}-01",
    f"000-{TRACE}-{SPAN}-01",
    f"0-{TRACE}-{SPAN}-01",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-.{TRACE[1:]}-{SPAN}-01",
    f"00-{TRACE[:-1]}.-{SPAN}-01",
    f"00-{TRACE}3-{SPAN}-01",
    f"00-{TRACE[:-1]}-{SPAN}-01",
    f"00-{TRACE[:-1]}A-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE}-.{SPAN[1:]}-01",
    f"00-{TRACE}-{SPAN}7-01",
    f"00-{TRACE}-{SPAN[:-1]}-01",
    f"00-{TRACE}-{SPAN[:-1]}B-01",
    f"00-{TRACE}-{SPAN}-.0",
    f"00-{TRACE}-{SPAN}-0.",
    f"00-{TRACE}-{SPAN}-001",
    f"00-{TRACE}-{SPAN}-1",
    f"00-{TRACE}-{SPAN}",
    f"{VALID},{VALID}",
    f"{VALID}, {VALID}",
    f"00-{TRACE}-{SPAN}-0\u0661",
]
STATES = {
    "foo=1": "foo=1",
    "foo=1,bar=2": "foo=1,bar=2",
    "foo=1 \t , \t bar=2, \t baz=3": "foo=1,bar=2,baz=3",
    "foo=1\t \t,\t \tbar=2": "foo=1,bar=2",
    "\t foo=1 \t": "foo=1",
    "foo=a b": "foo=a b",
    "foo=1,": "foo=1",
    ",,foo=1, ,bar=2,": "foo=1,bar=2",
    "": "",
    " ": "",
    ",": "",
    "foo=1,foo=2": "foo=1",
    f"{KEY}={VALUE}": f"{KEY}={VALUE}",
    f"{KEY}@a-z0-9_-*/={VALUE}": f"{KEY}@a-z0-9_-*/={VALUE}",
    "0a@b=1": "0a@b=1",
    f"foo=1,{'z' * 256}=1": f"foo=1,{'z' * 256}=1",
    f"foo=1,{'z' * 257}=1": "",
    f"foo=1,{'t' * 241}@{'v' * 14}=1": f"foo=1,{'t' * 241}@{'v' * 14}=1",
    f"foo=1,{'t' * 242}@v=1": f"foo=1,{'t' * 242}@v=1",
    f"foo=1,t@{'v' * 15}=1": f"foo=1,t@{'v' * 15}=1",
    f"foo=1,t@{'v' * 255}=1": "",
    f"foo={'v' * 256}": f"foo={'v' * 256}",
    f"foo={'v' * 257}": "",
    ",".join(NUMBERED[:32]): ",".join(NUMBERED[:32]),
    ",".join(NUMBERED): "",
    ",".join([*NUMBERED[:32], "", ""]): ",".join(NUMBERED[:32]),
    "foo =1": "",
    "FOO=1": "",
    "foo.bar=1": "",
    "1foo=1": "1foo=1",
    "foo@=1,bar=2": "foo@=1,bar=2",
    "@foo=1,bar=2": "",
    "foo@@bar=1,bar=2": "foo@@bar=1,bar=2",
    "foo@bar@baz=1,bar=2": "foo@bar@baz=1,bar=2",
    "foo@1=1": "foo@1=1",
    "-foo=1": "",
    "_foo=1": "",
    "foo=bar=baz": "",
    "foo=,bar=3": "",
    "foo": "",
    "=1": "",
    "foo=ü": "",
    "foo=\x7f": "",
}


@pytest.mark.parametrize("field", ACCEPTED)
def test_a_valid_traceparent_is_continued_and_of_its_flags_only_sampled_is_kept(field: str) -> None:
    found = parsed(field)
    assert found is not None
    assert found.is_remote
    assert (f"{found.trace_id:032x}", f"{found.span_id:016x}") == (TRACE, SPAN)
    assert traceparent(found) == f"00-{TRACE}-{SPAN}-0{int(field.strip()[53:55], 16) & 1}"


@pytest.mark.parametrize("field", REFUSED)
def test_an_invalid_traceparent_is_ignored_together_with_the_tracestate(field: str) -> None:
    assert parsed(field, "foo=1") is None


@pytest.mark.parametrize("field", STATES)
def test_a_tracestate_is_passed_on_whole_or_not_at_all(field: str) -> None:
    found = parsed(VALID, field)
    assert found is not None
    assert tracestate(found) == STATES[field]


def test_several_lines_of_tracestate_are_one_and_two_of_traceparent_are_none() -> None:
    parent = (b"traceparent", VALID.encode())
    lines = [b"foo=1,bar=2", b"", b"rojo=1,congo=2", b"baz=3"]
    found = from_headers([(b"tracestate", lines[0]), parent, *((b"tracestate", line) for line in lines[1:])])
    assert found is not None
    assert tracestate(found) == "foo=1,bar=2,rojo=1,congo=2,baz=3"
    assert from_headers([parent, parent]) is None
    assert from_headers([(b"trace-parent", VALID.encode()), (b"tracestate", b"foo=1")]) is None


LONG = [f"l{number}={'x' * 140}" for number in range(4)]
SHORT = [f"s{number:02}={'y' * 100}" for number in range(6)]


@pytest.mark.parametrize(
    ("members", "kept"),
    [
        ([f"a={'x' * 250}", f"b={'x' * 256}"], [f"a={'x' * 250}"]),
        ([f"a={'x' * 250}", f"b={'x' * 255}"], [f"a={'x' * 250}"]),
        ([f"a={'x' * 250}", f"b={'x' * 254}"], [f"a={'x' * 250}"]),
        ([f"a={'x' * 253}", f"b={'x' * 254}"], [f"a={'x' * 253}", f"b={'x' * 254}"]),
        (LONG, LONG[:3]),
        (SHORT, SHORT[:4]),
        ([*LONG, *SHORT[:2]], [*LONG[:2], *SHORT[:2]]),
        ([*LONG[:1], *SHORT], SHORT[:4]),
    ],
)
def test_beyond_512_characters_long_members_go_first_and_then_those_at_the_end(
    members: list[str], kept: list[str]
) -> None:
    found = parsed(VALID, ",".join(members))
    assert found is not None
    passed_on = tracestate(found)
    assert len(passed_on) <= 512
    if len(",".join(members)) <= 512:
        kept = members
    assert passed_on.split(",") == kept


def opentelemetry_says(parent: str, state: str) -> tuple[int, int, dict[str, str]] | None:
    """Return what OpenTelemetry's own propagator finds."""
    carrier = {"traceparent": parent, "tracestate": state}
    context = TraceContextTextMapPropagator().extract(carrier, getter=DefaultGetter())
    found = get_current_span(context).get_span_context()
    return (found.trace_id, found.span_id, dict(found.trace_state)) if found.is_valid else None


@given(
    st.from_regex(r"\A0[01]-[0-9a-f]{32}-[0-9a-f]{16}-0[01]\Z"),
    st.lists(
        # a key that begins with a digit is one of level 2, which OpenTelemetry does not know
        st.from_regex(r"\A ?[a-zA][a-z0-9A ]{0,4}=[a-z =,]{0,6}\Z"),
        max_size=4,
        unique_by=lambda m: m.partition("=")[0].strip(),
    ),
)
def test_what_is_read_is_what_opentelemetry_reads(parent: str, members: list[str]) -> None:
    state = ",".join(members)
    found = parsed(parent, state)
    ours = (found.trace_id, found.span_id, dict(found.trace_state)) if found else None
    assert ours == opentelemetry_says(parent, state)


class Receiver:
    """The service that is called."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, str, str | None]] = []


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            (parent,) = self.headers.get_all("traceparent")
            states = self.headers.get_all("tracestate")
            receiver.asked.append((self.path, parent, None if states is None else ",".join(states)))
            body = b'{"rate": 1.08}'
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


ASKING = """
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from app.kernel.actions import Database, Transaction, change, read, task
from app.kernel.queue import Task
from app.kernel.queue.enqueue import Queue
from app.modules.platform.rates import Rates

LATER = Task[None]("platform.ask_later")


@dataclass(frozen=True)
class Ask:
    times: Annotated[int, Interval(ge=1, le=9)] = 1


@dataclass(frozen=True)
class Asking:
    rates: Rates
    queue: Queue

    @read("platform.ask_rates", GET="/platform/v1/ask", public=True)
    async def ask(self, ask: Ask) -> float:
        return [await self.rates.of("USD") for _ in range(ask.times)][-1]

    @change("platform.ask_later", POST="/platform/v1/ask-later", public=True)
    async def ask_later(self, tx: Transaction) -> None:
        await self.queue.enqueue(tx, LATER)

    @task(LATER)
    async def ask_now(self, db: Database) -> None:
        await self.rates.of("GBP")
"""


def documented() -> str:
    """Return the code in docs/calling-services.md."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/calling-services.md").read_text(), re.DOTALL)
    return code


def relaying(project: Project, receiver: Receiver) -> Project:
    """Return a copy of the project with a module that calls the receiver: from a request, and from a job."""
    copied = project.copy(project.scratch / "copy")
    rates = documented().replace("http://rates.internal", receiver.url)
    (copied.root / "app/modules/platform/rates.py").write_text(rates)
    add_feature(copied, "asking:Asking", ASKING, provided="rates:Rates, rates")
    return copied


def send(url: str, fields: list[tuple[str, str]], times: int = 1) -> None:
    """Send a request whose header fields are exactly these, white space included."""
    host, port = url.removeprefix("http://").split(":")
    lines = [f"GET /platform/v1/ask?times={times} HTTP/1.1", f"host: {host}", "connection: close"]
    lines += [f"{name}:{value}" for name, value in fields]
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200"), answer


@pytest.mark.parametrize("exported", [False, True], ids=["without an exporter", "with one"])
def test_a_service_that_is_called_gets_the_trace_of_the_request(
    project: Project, database: TestDatabase, exported: bool, subtests: pytest.Subtests
) -> None:
    with receiving() as receiver, collecting() as collector:
        if exported:
            project.env |= {"TELEMETRY_OTLP_ENDPOINT": collector.url, "TELEMETRY_TRACE_RATIO": "1"}
        process = relaying(project, receiver).start("run-all-in-one")
        url = process.ready()

        def relayed(*fields: tuple[str, str], times: int = 1) -> list[tuple[str, str | None]]:
            receiver.asked.clear()
            send(url, list(fields), times)
            assert [path for path, _, _ in receiver.asked] == ["/rates/USD"] * times
            for _, parent, _ in receiver.asked:
                assert WELL_FORMED.fullmatch(parent), parent
                assert parent[36:52] != SPAN
            return [(parent, state) for _, parent, state in receiver.asked]

        def relayed_one(*fields: tuple[str, str]) -> tuple[str, str | None]:
            return relayed(*fields)[0]

        for parent in ACCEPTED:
            with subtests.test(traceparent=parent):
                found, state = relayed_one(("traceparent", parent), ("tracestate", "foo=1"))
                assert (found[3:35], state) == (TRACE, "foo=1")
                assert found[-2:] == f"0{int(parent.strip()[53:55], 16) & 1}"
        for parent in [field for field in REFUSED if field.isascii()]:
            with subtests.test(traceparent=parent):
                found, state = relayed_one(("traceparent", parent), ("tracestate", "foo=1"))
                assert found[3:35] not in (TRACE, "0" * 32)
                assert state is None
        for given_state, expected in STATES.items():
            with subtests.test(tracestate=given_state):
                if given_state.isascii() and "\x7f" not in given_state:
                    found, state = relayed_one(("traceparent", VALID), ("tracestate", given_state))
                    assert (found[3:35], state or "") == (TRACE, expected)
        with subtests.test("names in any case, and other names"):
            for name in ("TraceParent", "TrAcEpArEnT", "TRACEPARENT"):
                assert relayed_one((name, VALID), ("TraceState", "foo=1"))[0][3:35] == TRACE
            assert relayed_one(("trace-parent", VALID))[0][3:35] != TRACE
            assert relayed_one(("traceparent", VALID), ("trace-state", "foo=1"))[1] is None
        with subtests.test("two lines of traceparent, alike or not"):
            for other in (VALID, f"00-{TRACE[:-1]}1-{SPAN}-01"):
                found, state = relayed_one(("traceparent", VALID), ("traceparent", other), ("tracestate", "foo=1"))
                assert found[3:35] not in (TRACE, other[3:35])
                assert state is None
        with subtests.test("several lines of tracestate"):
            lines = [("tracestate", line) for line in ("foo=1", "", "bar=2,baz=3")]
            assert relayed_one(("traceparent", VALID), *lines)[1] == "foo=1,bar=2,baz=3"
        with subtests.test("a tracestate alone is nothing"):
            assert relayed_one(("tracestate", "foo=1"))[1] is None
        with subtests.test("three requests of one trace have three parents"):
            for fields in ([("traceparent", VALID)], [], [("traceparent", f"00-{'0' * 32}-{SPAN}-01")]):
                found_parents = [parent for parent, _ in relayed(*fields, times=3)]
                assert len({parent[3:35] for parent in found_parents}) == 1
                assert len({parent[36:52] for parent in found_parents}) == 3
                assert (found_parents[0][3:35] == TRACE) is (fields == [("traceparent", VALID)])
        with subtests.test("the trace goes through the queue"):
            receiver.asked.clear()
            headers = {"traceparent": VALID, "tracestate": "foo=1,bar=2"}
            assert httpx.post(f"{url}/platform/v1/ask-later", headers=headers).status_code == 204
            (asked,) = eventually(lambda: list(receiver.asked))
            assert (asked[0], asked[1][3:35], asked[1][-2:], asked[2]) == ("/rates/GBP", TRACE, "01", "foo=1,bar=2")
        with subtests.test("requests are measured by host and status, without their paths"):
            said = httpx.get(f"{url}/metrics").text
            labels = 'host="127.0.0.1",le="+Inf",method="GET",status="200"'
            assert f"http_client_request_duration_seconds_bucket{{{labels}}}" in said
            assert "/rates" not in said
        if exported:
            with subtests.test("spans name the operation, never the path"):
                check_spans(collector)


def check_spans(collector: Any) -> None:
    name = "GET /rates/{currency}"
    made = eventually(lambda: [span for span in collector.named(name) if span.trace_state == "foo=1,bar=2"])[0]
    about = {a.key: a.value.string_value or a.value.int_value for a in made.attributes}
    assert about == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "url.template": "/rates/{currency}",
        "http.response.status_code": 200,
    }
    assert not [body for body in collector.bodies if b"/rates/USD" in body or b"/rates/GBP" in body]
