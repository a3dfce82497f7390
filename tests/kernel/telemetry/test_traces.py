"""Traces of real processes, at a real receiver."""

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.kernel.telemetry.collector import Collector, collecting, collecting_grpc
from tests.support.project import Project, Running, add_feature, eventually

USERNAME, PASSWORD = SUPERUSER
LOGIN = "/auth/v1/login"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def traced(project: Project, collector: Collector) -> Project:
    project.env |= {"TELEMETRY_OTLP_ENDPOINT": collector.url, "TELEMETRY_TRACE_RATIO": "1"}
    return project


def metric(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


HEARING = """
from dataclasses import dataclass

from app.kernel.actions import Database, subscriber
from app.modules.auth.portal import SessionStarted


@dataclass(frozen=True)
class Hearing:
    @subscriber("platform.hear", SessionStarted)
    async def hear(self, db: Database, event: SessionStarted) -> None:
        await db.one("SELECT 42 AS heard")
"""


def subscribed(project: Project) -> Project:
    """Return a copy of the project in which platform hears of those who sign in."""
    copied = project.copy(project.scratch / "copy")
    add_feature(copied, "hearing:Hearing", HEARING)
    return copied


def test_one_trace_joins_the_request_the_event_the_subscriber_and_its_statement(
    traced: Project, collector: Collector
) -> None:
    copied = subscribed(traced)
    consumer = copied.start("run-event-consumer")
    consumer.ready()
    client = log_in(copied, copied.start("run-auth-http"))
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    client.headers["traceparent"] = f"00-{trace_id}-{span_id}-01"
    client.headers["tracestate"] = "foo=1, bar=2"
    assert client.post(LOGIN, json={"username": USERNAME, "password": PASSWORD}).status_code == 200
    of_trace = bytes.fromhex(trace_id)

    def path() -> list[Span]:
        """Return the spans from the subscriber's statement upwards."""
        spans = {span.span_id: span for span in list(collector.spans) if span.trace_id == of_trace}
        step = next((span for span in spans.values() if "heard" in str(span.attributes)), None)
        found = []
        while step is not None:
            found.append(step)
            step = spans.get(step.parent_span_id)
        return found

    published = "publish auth.session_started"
    names = ["SELECT", "platform.hear", published, "auth.login", f"POST {LOGIN}"]
    eventually(lambda: [span.name for span in path()] == names)
    assert path()[-1].parent_span_id.hex() == span_id
    assert {span.trace_state for span in path()} == {"foo=1,bar=2"}
    assert {resource["service.name"] for resource in collector.resources} == {"run-auth-http", "run-event-consumer"}
    assert PASSWORD.encode() not in b"".join(collector.bodies)


def test_a_trace_that_the_caller_does_not_sample_is_not_exported(traced: Project, collector: Collector) -> None:
    client = log_in(traced, traced.start("run-auth-http"))
    unsampled, sampled = secrets.token_hex(16), secrets.token_hex(16)
    for trace_id, flags in ((unsampled, "00"), (sampled, "01")):
        client.get("/auth/v1/me", headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"})
    eventually(lambda: [span for span in collector.named("GET /auth/v1/me") if span.trace_id.hex() == sampled])
    assert not [span for span in collector.spans if span.trace_id.hex() == unsampled]


def stopped_in_order(process: Running) -> None:
    assert process.stop() == 0, process.said()


@pytest.mark.parametrize(("protocol", "receiver"), [("http", collecting), ("grpc", collecting_grpc)])
def test_spans_are_sent_with_the_headers_of_the_settings(
    project: Project, protocol: str, receiver: Callable[[], AbstractContextManager[Collector]]
) -> None:
    with receiver() as collector:
        project.env |= {"TELEMETRY_OTLP_ENDPOINT": collector.url, "TELEMETRY_OTLP_PROTOCOL": protocol}
        project.env |= {"TELEMETRY_TRACE_RATIO": "1", "TELEMETRY_OTLP_HEADERS": "x-tenant=acme x-key=k3y"}
        process = project.start("run-auth-http")
        log_in(project, process).get("/auth/v1/me")
        eventually(lambda: collector.named("GET /auth/v1/me"))
        stopped_in_order(process)
    assert {"x-tenant": "acme", "x-key": "k3y"}.items() <= collector.headers.items()


@pytest.mark.parametrize("kind", ["dead", "dead over gRPC", "slow", "refusing"])
def test_a_collector_that_does_not_do_its_work_costs_spans_that_are_counted_and_nothing_else(
    traced: Project, collector: Collector, kind: str
) -> None:
    if kind.startswith("dead"):
        traced.env["TELEMETRY_OTLP_PROTOCOL"] = "grpc" if "gRPC" in kind else "http"
        traced.env["TELEMETRY_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
    elif kind == "slow":
        collector.delay_s = 30
    else:
        collector.status = 400
    process = traced.start("run-auth-http")
    client = log_in(traced, process)
    for _ in range(20):
        assert client.get("/auth/v1/me").status_code == 200
    eventually(lambda: metric(client, 'telemetry_dropped_total{signal="traces"}') > 0)
    assert client.get("/auth/v1/me").status_code == 200
    assert client.get("/ready").status_code == 200
    stopped_in_order(process)


def test_a_scraper_that_takes_openmetrics_is_led_to_traces(traced: Project, collector: Collector) -> None:
    process = traced.start("run-all-in-one")
    client = log_in(traced, process)
    client.get("/auth/v1/me")
    client.post("/platform/v1/schedules/platform.heartbeat/trigger")

    def examples(metric: str) -> set[str]:
        said = client.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.3"})
        assert said.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert said.text.endswith("# EOF\n")
        return set(re.findall(rf'^{metric}_bucket{{.*}} \S+ # {{trace_id="(\w+)"}}', said.text, re.MULTILINE))

    def exported() -> set[str]:
        return {span.trace_id.hex() for span in list(collector.spans)}

    for metric in ("http_server_request_duration_seconds", "job_duration_seconds"):
        eventually(lambda metric=metric: examples(metric) & exported())
    assert "trace_id" not in client.get("/metrics").text
    assert client.get("/metrics").headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_the_line_of_a_job_that_no_request_caused_names_its_trace(traced: Project, collector: Collector) -> None:
    process = traced.start("run-all-in-one")
    process.ready()
    assert traced.app("schedules", "trigger", "platform.heartbeat").returncode == 0
    line = eventually(lambda: [line for line in process.logs() if line["message"] == "job done"])[0]
    eventually(lambda: [s for s in collector.named("platform.heartbeat") if s.trace_id.hex() == line["trace_id"]])


def test_without_an_endpoint_the_sdk_is_not_loaded_and_trace_ids_are_logged_all_the_same(
    project: Project, database: TestDatabase
) -> None:
    process = project.start("run-auth-http")
    client = log_in(project, process)
    trace_id = secrets.token_hex(16)
    client.get("/auth/v1/me", headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"})
    eventually(lambda: [line for line in process.logs() if line.get("trace_id") == trace_id])
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert "protobuf" not in maps
