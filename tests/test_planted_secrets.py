"""Ten secrets are planted where secrets come from, and come out of no log, trace, metric, error or message."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import TestDatabase, log_in
from tests.kernel.telemetry.collector import Collector, collecting
from tests.support.project import Project, eventually

PLANTED = {
    "password": "p1anted-passw0rd-of-nobody",
    "token": "eyJhbGciOiJub25lIn0.cGxhbnRlZA.cGxhbnRlZC10b2tlbg",
    "refresh token": "rt_p1antedp1antedp1antedp1anted",
    "api key": "app_p1antedp1antedp1antedp1anted",
    "dsn": "p1anted-dsn-passw0rd",
    "cookie": "p1anted-c00kie-value",
    "query": "p1anted-query-value",
    "body": "p1anted-0tp-in-b0dy",
    "exception": "p1anted-in-an-excepti0n",
    "environment": "p1anted-in-the-envir0nment-of-32-characters",
}

LEAK = """
        import os

        raise RuntimeError(
            "cannot connect to postgresql://app:DSN@db.example.com/app with password=EXCEPTION"
            ' and {"refresh_token": "REFRESH", "key": "KEY"}, '
            "Authorization: Bearer TOKEN, master " + os.environ["AUTH_MASTER_SECRET"]
        )
"""
for _mark, _name in {
    "DSN": "dsn",
    "EXCEPTION": "exception",
    "REFRESH": "refresh token",
    "KEY": "api key",
    "TOKEN": "token",
}.items():
    LEAK = LEAK.replace(_mark, PLANTED[_name])


@pytest.fixture
def messages() -> Iterator[tuple[str, list[str]]]:
    received: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"json://127.0.0.1:{server.server_port}/", received
        server.shutdown()
        thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


def leaky(project: Project) -> Project:
    """Return a copy of the project whose heartbeat fails, saying too much."""
    copied = project.copy(project.scratch / "copy")
    feature = copied.root / "app/modules/platform/maintenance.py"
    text = feature.read_text()
    changed = text.replace('\n        logger.info("cron manager, queue and consumer work")\n', LEAK)
    assert changed != text
    feature.write_text(changed)
    return copied


def test_no_planted_secret_comes_out_anywhere(
    project: Project, database: TestDatabase, collector: Collector, messages: tuple[str, list[str]]
) -> None:
    url, received = messages
    project.env |= {
        "AUTH_MASTER_SECRET": PLANTED["environment"],
        "SENTINEL_NOTIFY_URLS": url,
        "TELEMETRY_OTLP_ENDPOINT": collector.url,
        "TELEMETRY_TRACE_RATIO": "1",
        "LOGGER_LEVEL": "debug",
        "PROCESS_DRAIN_DELAY": "0",
    }
    copied = leaky(project)
    process = copied.start("run-all-in-one")
    client = log_in(copied, process)
    client.post(
        f"/auth/v1/login?password={PLANTED['query']}",
        json={"username": "root", "password": PLANTED["password"], "otp": PLANTED["body"]},
        headers={"Cookie": f"session={PLANTED['cookie']}"},
    )
    client.post("/auth/v1/refresh", json={"refresh_token": PLANTED["refresh token"]})
    for name in ("token", "api key"):
        client.get("/auth/v1/me", headers={"Authorization": f"Bearer {PLANTED[name]}"})
    database.run("ALTER TABLE kernel.events RENAME TO moved_away")  # and a request that fails with a 500
    client.get("/platform/v1/events", headers={"Cookie": f"session={PLANTED['cookie']}"}, params={"type": "x"})
    assert copied.app("schedules", "trigger", "platform.heartbeat").returncode == 0
    eventually(lambda: len(database.all("SELECT 1 FROM kernel.errors")) >= 2)
    eventually(lambda: received)
    eventually(lambda: collector.named("platform.heartbeat"))
    metrics = client.get("/metrics").text
    shown = [
        copied.app("errors", "show", str(error_id)) for (error_id,) in database.all("SELECT id FROM kernel.errors")
    ]
    assert process.stop() == 0
    written = {
        "logs": process.output.read_text() + process.errors.read_text(),
        "traces": b"".join(collector.bodies).decode(errors="replace"),
        "metrics": metrics,
        "errors": json.dumps(database.all("SELECT title, samples::text FROM kernel.errors")),
        "errors show": "".join(done.stdout + done.stderr for done in shown),
        "messages": "".join(received),
        "job errors": json.dumps(database.all("SELECT errors::text FROM kernel.jobs")),
    }
    assert "cannot connect to" in written["logs"]
    assert "cannot connect to" in written["errors"]
    found = [(name, where) for name, secret in PLANTED.items() for where, text in written.items() if secret in text]
    assert found == []
