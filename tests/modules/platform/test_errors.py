"""Captured errors of real processes: what operators see, and whom a real webhook tells."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from app.kernel.actions import Work, declared
from app.modules.auth import portal
from app.modules.platform import MODULE
from tests.conftest import TestDatabase, log_in
from tests.kernel.telemetry.collector import collecting
from tests.support.project import Project, eventually

API = "/platform/v1/errors"


class Webhook:
    """What it was told; how it answers."""

    def __init__(self) -> None:
        self.messages: list[dict] = []
        self.parents: list[str] = []
        self.status = 200
        self.url = ""


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.parents.append(self.headers.get("traceparent", ""))
            hook.messages.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(hook.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        hook.url = f"json://127.0.0.1:{server.server_port}/"
        yield hook
        server.shutdown()
        thread.join()


@pytest.fixture
def broken(project: Project, database: TestDatabase, webhook: Webhook) -> httpx.Client:
    """A client of a process in which one table is gone, so that one route fails; everything else works."""
    project.env |= {"SENTINEL_NOTIFY_URLS": webhook.url, "PROCESS_DRAIN_DELAY": "0"}
    client = log_in(project, project.start("run-all-in-one"))
    database.run("ALTER TABLE kernel.events RENAME TO moved_away")
    return client


def fail(client: httpx.Client, times: int = 1) -> None:
    for _ in range(times):
        assert client.get("/platform/v1/events").status_code == 500


def only(client: httpx.Client) -> dict:
    items = client.get(API).json()["items"]
    assert len(items) == 1, items
    return items[0]


def test_a_failing_route_is_one_group_that_people_are_told_of_once(
    broken: httpx.Client, webhook: Webhook, project: Project
) -> None:
    fail(broken, 30)
    eventually(lambda: only(broken)["count"] == 30)
    group = only(broken)
    assert (group["kind"], group["type"], group["state"]) == ("request", "UndefinedTable", "open")
    assert group["culprit"].startswith("app.kernel.")
    assert group["processes"] == ["run-all-in-one"]
    (message,) = eventually(lambda: list(webhook.messages))
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", webhook.parents[0])
    assert message["title"].startswith("[test] UndefinedTable: ")
    assert group["id"] in message["message"]
    details = broken.get(f"{API}/{group['id']}").json()
    sample = details["samples"][0]
    assert sample["operation"] == "platform.list_events"
    assert sample["route"] == "/platform/v1/events"
    assert sample["actor_id"] == broken.get("/auth/v1/me").json()["actor"]["id"]
    assert "modules/platform/events.py" in sample["stack"]
    shown = project.app("errors", "show", group["id"])
    assert shown.returncode == 0, shown.stderr
    assert "platform.list_events" in shown.stdout
    fail(broken, 5)
    eventually(lambda: only(broken)["count"] == 35)
    assert len(webhook.messages) == 1


@pytest.mark.parametrize("options", ["", "?method=POST"], ids=["ours", "through Apprise"])
def test_the_call_of_a_webhook_is_a_span_that_the_webhook_continues(
    project: Project, database: TestDatabase, webhook: Webhook, options: str
) -> None:
    with collecting() as collector:
        project.env |= {"TELEMETRY_OTLP_ENDPOINT": collector.url, "TELEMETRY_TRACE_RATIO": "1"}
        project.env |= {"SENTINEL_NOTIFY_URLS": f"{webhook.url}s3cr3t-of-the-path{options}"}
        client = log_in(project, project.start("run-all-in-one"))
        database.run("ALTER TABLE kernel.events RENAME TO moved_away")
        fail(client)
        _, trace_id, span_id, flags = eventually(lambda: list(webhook.parents))[0].split("-")
        assert int(flags, 16) & 1
        sent = eventually(lambda: [s for s in collector.named("POST") if s.span_id.hex() == span_id])[0]
        eventually(lambda: [s for s in collector.named("platform.send_message") if s.span_id == sent.parent_span_id])
    assert sent.trace_id.hex() == trace_id
    said = {a.key: a.value.string_value or a.value.int_value for a in sent.attributes}
    assert said == {"http.request.method": "POST", "server.address": "127.0.0.1", "http.response.status_code": 200}
    assert b"s3cr3t" not in b"".join(collector.bodies)


def test_a_resolved_error_regresses_and_a_muted_one_does_not(
    broken: httpx.Client, webhook: Webhook, project: Project, database: TestDatabase
) -> None:
    fail(broken)
    error_id = eventually(lambda: only(broken))["id"]
    eventually(lambda: len(webhook.messages) == 1)
    resolved = project.app("errors", "resolve", error_id)
    assert (resolved.returncode, resolved.stdout) == (0, f"{error_id} is resolved\n")
    assert only(broken)["state"] == "resolved"
    fail(broken)
    eventually(lambda: only(broken)["state"] == "regressed")
    eventually(lambda: len(webhook.messages) == 2)
    assert webhook.messages[1]["title"].startswith("[test] regressed: ")
    assert project.app("errors", "mute", error_id, "--for", "7d").returncode == 0
    fail(broken)
    eventually(lambda: only(broken)["count"] == 3)
    assert only(broken)["state"] == "muted"
    listed = project.app("errors", "list", "--state", "muted", "--json")
    assert [item["id"] for item in json.loads(listed.stdout)["items"]] == [error_id]
    acts = database.all("SELECT action FROM kernel.audit WHERE target = %s ORDER BY id", error_id)
    assert acts == [("platform.resolve_error",), ("platform.mute_error",)]


def test_a_dead_webhook_changes_nothing_and_the_message_is_tried_again(
    broken: httpx.Client, webhook: Webhook, database: TestDatabase
) -> None:
    webhook.status = 500
    fail(broken)
    waiting = "SELECT attempt, payload->>'title' FROM kernel.jobs WHERE task = 'platform.send_message' AND attempt > 0"
    ((attempt, title),) = eventually(lambda: database.all(waiting))
    assert attempt >= 1
    assert title.startswith("[test] UndefinedTable")
    assert broken.get("/auth/v1/me").status_code == 200
    webhook.status = 200
    before = len(webhook.messages)
    database.run("UPDATE kernel.jobs SET run_at = now() WHERE task = 'platform.send_message'")
    eventually(lambda: len(webhook.messages) > before)


def test_the_way_to_people_can_be_tried(project: Project, webhook: Webhook) -> None:
    nobody = project.app("errors", "notify-test")
    message = "app: there are no recipients of error notifications; set sentinel.notify_urls"
    assert (nobody.returncode, nobody.stderr.splitlines()[0]) == (78, message)
    accepted = project.app("errors", "notify-test", "--json", env={"SENTINEL_NOTIFY_URLS": webhook.url})
    assert accepted.returncode == 0, accepted.stderr
    assert [item["problem"] for item in json.loads(accepted.stdout)["items"]] == [""]
    assert webhook.messages[0]["title"] == "[test] a test"
    webhook.status = 403
    refused = project.app("errors", "notify-test", env={"SENTINEL_NOTIFY_URLS": f"{webhook.url} json://127.0.0.1:1/"})
    assert refused.returncode == 1
    assert refused.stdout.count("did not accept the message") == 2
    assert str(webhook.url) not in refused.stdout + refused.stderr


@pytest.mark.parametrize("command", ["show", "resolve", "mute"])
def test_a_group_that_does_not_exist_is_no_such_thing(project: Project, command: str) -> None:
    done = project.app("errors", command, "01a2039b-de33-78fd-8822-2efa2277fa9a")
    assert (done.returncode, done.stdout) == (67, "")


def test_a_wrong_filter_is_usage(project: Project) -> None:
    done = project.app("errors", "list", "--state", "lost")
    assert done.returncode == 2
    assert "'open', 'resolved', 'muted' or 'regressed'" in done.stderr


def test_a_process_that_is_killed_becomes_an_error(project: Project, database: TestDatabase) -> None:
    watching = project.start("run-cron-manager")
    watching.ready()
    killed = project.start("run-event-consumer")
    killed.ready()
    eventually(lambda: database.all("SELECT 1 FROM kernel.processes WHERE name = 'run-event-consumer'"))
    killed.popen.kill()
    killed.wait()
    database.run("UPDATE kernel.processes SET last_seen_at = now() - interval '1 minute' WHERE pid = %s", killed.pid)
    database.run("UPDATE kernel.watch SET checked_at = '-infinity'")
    found = eventually(lambda: database.all("SELECT kind, type, title FROM kernel.errors"))
    assert found[0][:2] == ("outage", "ProcessGone")
    assert f"(pid {killed.pid}) has not reported for 6" in found[0][2]
    stopped = project.start("run-event-consumer")
    stopped.ready()
    assert stopped.stop() == 0
    assert database.all("SELECT count(*) FROM kernel.processes WHERE pid = %s", stopped.pid) == [(0,)]


def test_people_are_notified_by_the_consumer_of_an_actor_that_is_disabled_over_http(
    project: Project, database: TestDatabase, webhook: Webhook
) -> None:
    project.env |= {"SENTINEL_NOTIFY_URLS": webhook.url, "PROCESS_DRAIN_DELAY": "0"}
    project.start("run-event-consumer").ready()
    client = log_in(project, project.start("run-auth-http"))
    body = {"type": "user", "username": "mallory", "password": "correct horse battery staple"}
    actor_id = client.post("/auth/v1/actors", json=body).json()["id"]
    assert client.post(f"/auth/v1/actors/{actor_id}/disable").status_code < 300
    (message,) = eventually(lambda: list(webhook.messages))
    assert message["title"] == "[test] an actor was disabled"
    assert message["message"] == f"actor {actor_id}: its sessions and keys have ended"
    done = "SELECT outcome FROM kernel.finished_jobs WHERE task = 'platform.notify_of_disabled_actor'"
    assert database.all(done) == [("done",)]


def test_each_event_of_auth_has_a_subscriber_or_says_why_not() -> None:
    events = {kind for kind in vars(portal).values() if isinstance(kind, type) and hasattr(kind, "event_type")}
    works = [work for kind in MODULE.feature_classes() for _, work, _ in declared(kind) if isinstance(work, Work)]
    heard = {work.event for work in works if work.event is not None}
    assert portal.ActorDisabled in heard
    reason = "The other events have no subscriber here: they are published for"
    assert not events - heard or reason in (portal.__doc__ or "")
