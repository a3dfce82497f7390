"""`app health`."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.commands.outcome import misused, printed_json, refused
from tests.support.project import Project


class Answering(ThreadingHTTPServer):
    """A server that gives one answer to everything."""

    status = 200
    body = b""

    @property
    def port(self) -> str:
        return str(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the signature is the library's
        pass


@pytest.fixture
def answering() -> Iterator[Answering]:
    with Answering(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def closed_port() -> str:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def test_a_process_that_runs_is_healthy_and_ready(on_migrated: Project) -> None:
    port = on_migrated.start("run-cron-manager").ready().rpartition(":")[2]
    done = on_migrated.app("health", "--port", port)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"port {port}: ok\n", "")
    done = on_migrated.app("health", "--ready", "--port", port)
    assert (done.returncode, done.stdout) == (0, f"port {port}: ready\n")
    found = printed_json(on_migrated.app("health", "--json", "--port", port))
    assert found == {"port": int(port), "status_code": 200, "status": "ok", "process": "run-cron-manager"}
    # found by the settings: nothing on the API's port, so the workers' is asked
    done = on_migrated.app("health", env={"HTTP_SERVER_PORT": closed_port(), "OPERATIONS_PORT": port})
    assert (done.returncode, done.stdout) == (0, f"port {port}: ok\n")


def test_a_process_that_listens_on_another_address_is_asked_there(on_migrated: Project) -> None:
    elsewhere = {"OPERATIONS_HOST": "127.0.0.2"}
    process = on_migrated.start("run-cron-manager", env=elsewhere)
    port = process.ready().rpartition(":")[2]
    refused(on_migrated.app("health", "--port", port), 69)
    assert on_migrated.app("health", "--port", port, env=elsewhere).returncode == 0


def test_a_process_that_listens_on_every_address_is_asked_on_this_machine(cli: Project, answering: Answering) -> None:
    answering.body = b'{"status": "ok"}'
    everywhere = {"HTTP_SERVER_HOST": "0.0.0.0", "HTTP_SERVER_PORT": answering.port}
    assert cli.app("health", env=everywhere).returncode == 0


def test_a_process_that_is_not_ready_is_said_to_miss_something(cli: Project, answering: Answering) -> None:
    answering.status = 503
    answering.body = b'{"status": "not ready", "missing": {"database": "it does not answer"}}'
    done = cli.app("health", "--ready", "--port", answering.port)
    assert (done.returncode, done.stdout) == (1, f"port {answering.port}: not ready (database: it does not answer)\n")
    done = cli.app("health", "--ready", "--port", answering.port, "--json")
    assert done.returncode == 1
    assert '"database": "it does not answer"' in done.stdout


@pytest.mark.parametrize("body", [b"<html></html>", b"[1]", b'"ok"', b"\xff"])
def test_what_is_no_answer_of_ours_is_none(cli: Project, answering: Answering, body: bytes) -> None:
    answering.body = body
    refused(cli.app("health", "--port", answering.port), 69)


def test_nothing_there_is_unavailable_and_says_where_it_asked(cli: Project) -> None:
    ports = closed_port(), closed_port()
    line = refused(cli.app("health", env={"HTTP_SERVER_PORT": ports[0], "OPERATIONS_PORT": ports[1]}), 69)
    assert line == f"app: nothing answers /health on 127.0.0.1, port {ports[0]} or 127.0.0.1, port {ports[1]}"


def test_a_process_that_hangs_is_given_up_on(cli: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused(cli.app("health", "--port", str(silent.getsockname()[1]), seconds=20), 69)


@pytest.mark.parametrize("port", ["0", "65536", "many"])
def test_what_is_no_port_is_refused(cli: Project, port: str) -> None:
    assert "--port" in misused(cli.app("health", "--port", port))
