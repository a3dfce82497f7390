"""`app health`."""

import os
import pwd
import signal
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.kernel import running
from tests.commands.outcome import misused, one_line, printed_json, refused
from tests.support.project import Project


@pytest.fixture
def cli(cli: Project, tmp_path: Path) -> Project:
    """An installation of its own: processes of other tests are not found."""
    return cli.copy(tmp_path / "installation")


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


def test_a_process_is_found_wherever_it_listens(on_migrated: Project) -> None:
    process = on_migrated.start("run-cron-manager")
    port = process.ready().rpartition(":")[2]
    done = on_migrated.app("health")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"run-cron-manager on port {port}: ok\n", "")
    done = on_migrated.app("health", "--ready", "--port", port)
    assert (done.returncode, done.stdout) == (0, f"port {port}: ready\n")
    [found] = printed_json(on_migrated.app("health", "--json"))["items"]
    assert found == {"port": int(port), "status_code": 200, "status": "ok", "process": "run-cron-manager"}
    assert [one.name for one in running.running(on_migrated.root)] == ["run-cron-manager"]
    # --port is asked and nothing else
    refused(on_migrated.app("health", "--port", closed_port()), 69)
    assert process.stop() == 0
    assert running.running(on_migrated.root) == []


def test_every_process_is_asked_and_one_without_an_answer_is_named(on_migrated: Project) -> None:
    first, second = on_migrated.start("run-cron-manager"), on_migrated.start("run-platform-http")
    ports = [process.ready().rpartition(":")[2] for process in (first, second)]
    done = on_migrated.app("health", "--ready")
    assert (done.returncode, done.stdout) == (
        0,
        f"run-cron-manager on port {ports[0]}: ready\nrun-platform-http on port {ports[1]}: ready\n",
    )
    second.signal(signal.SIGSTOP)
    done = on_migrated.app("health")
    assert (done.returncode, done.stdout) == (69, f"run-cron-manager on port {ports[0]}: ok\n")
    assert one_line(done.stderr) == f"app: no answer to /health from run-platform-http on port {ports[1]}"
    # the address of a killed process is not asked, and nothing of it is left
    second.popen.kill()
    second.wait()
    done = on_migrated.app("health")
    assert (done.returncode, done.stdout) == (0, f"run-cron-manager on port {ports[0]}: ok\n")


def test_workers_are_found_as_one_process(on_migrated: Project) -> None:
    process = on_migrated.start("run-event-consumer", "--workers", "2")
    port = process.ready().rpartition(":")[2]
    done = on_migrated.app("health", "--ready")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"run-event-consumer on port {port}: ready\n", "")
    assert process.stop() == 0
    assert running.running(on_migrated.root) == []


def test_a_process_is_found_by_the_settings_when_it_left_no_address(cli: Project, answering: Answering) -> None:
    answering.body = b'{"status": "ok"}'
    # nothing on the API's port, so the workers' is asked
    done = cli.app("health", env={"HTTP_SERVER_PORT": closed_port(), "OPERATIONS_PORT": answering.port})
    assert (done.returncode, done.stdout) == (0, f"port {answering.port}: ok\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(running, "FOLDERS", (tmp_path,))
    return tmp_path


ONE = running.Running("run-one", "http://127.0.0.1:1")


def test_an_address_is_for_its_user_its_code_and_its_namespaces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running.announced(*ONE, folder) as announced:
        assert announced
        assert running.running(folder) == [ONE]
        assert running.running(folder / "other") == []
        [path] = folder.iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        with monkeypatch.context() as patched:
            patched.setattr(os, "readlink", lambda _: "pid:[1]")
            assert running.running(folder) == []
        with monkeypatch.context() as patched:
            patched.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
            assert running.running(folder) == ([ONE] if path.stat().st_uid == 0 else [])  # root is believed
        if os.geteuid() == 0:  # root believes the user of our units, and nobody else
            os.chown(path, 1234, 1234)
            assert running.running(folder) == []
            with monkeypatch.context() as patched:
                patched.setattr(pwd, "getpwnam", lambda _: SimpleNamespace(pw_uid=1234))
                assert running.running(folder) == [ONE]
                patched.setattr(os, "geteuid", lambda: 1235)
                assert running.running(folder) == []
    assert list(folder.iterdir()) == []


def test_another_user_cannot_make_the_health_check_of_root_fail(cli: Project, answering: Answering) -> None:
    answering.body = b'{"status": "ok"}'
    env = {"HTTP_SERVER_PORT": answering.port}
    with running.announced("run-forged", f"http://127.0.0.1:{closed_port()}", cli.root):
        refused(cli.app("health", env=env), 69)
        if os.geteuid() == 0:
            [path] = [path for path in running.FOLDERS[0].glob("app-process-*") if "run-forged" in path.read_text()]
            os.chown(path, 65534, 65534)
            done = cli.app("health", env=env)
            assert (done.returncode, done.stdout) == (0, f"port {answering.port}: ok\n"), done.stderr


def test_whatever_else_is_in_the_folder_is_no_address(folder: Path) -> None:
    made = [folder / f"app-process-{number}" for number in range(6)]
    os.mkfifo(made[0])
    made[1].symlink_to("/dev/zero")
    made[2].mkdir()
    made[3].write_text('{"name": "run-killed", "url": "http://127.0.0.1:1"}')
    made[4].touch()
    made[5].touch()
    os.utime(made[5], (0, 0))
    with running.announced(*ONE, folder):
        assert running.running(folder) == [ONE]
    left = [os.path.lexists(path) for path in made]
    # those of killed processes are removed, and one that is being written is not
    assert left == [True, True, True, False, True, False]


@pytest.mark.parametrize("left", [("\x1b]0;x", ONE.url), ("run-one", "http://127.0.0.1:99999"), ("run-one", "nowhere")])
def test_an_address_that_others_have_made_up_is_none(folder: Path, left: tuple[str, str]) -> None:
    with running.announced(*left, folder):
        assert running.running(folder) == []


def test_a_process_starts_without_a_folder_for_its_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "FOLDERS", (folder / "none",))
    with running.announced(*ONE, folder) as announced:
        assert not announced


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


def test_an_answer_of_anybody_does_nothing_to_the_terminal(cli: Project, answering: Answering) -> None:
    answering.body = b'{"status": "\\u001b[2Jok\\n", "missing": ["a"]}'
    assert cli.app("health", "--port", answering.port).stdout == f"port {answering.port}: ?[2Jok?\n"


@pytest.mark.parametrize(
    "body", [b"<html></html>", b"[1]", b'"ok"', b"\xff", b"[" * 100_000, b'{"a": "' + b"a" * (1 << 20) + b'"}']
)
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
