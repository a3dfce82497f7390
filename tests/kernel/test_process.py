"""The process model: opening, closing, stopping."""

import asyncio
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import uvloop

from app.kernel import workers
from app.kernel.config import load
from app.kernel.errors import Unavailable
from app.kernel.process import DependencyCycle, Process, run_to_end
from app.kernel.services import InvalidOrder, Run, Service
from app.kernel.sockets import bind
from app.processes import sections
from tests.support.project import ROOT, Project, eventually


def process() -> Process:
    return Process("test", load(ROOT, sections(), {"APP_ENV": "test"}), ROOT)


async def test_what_is_used_first_is_opened_once_and_closed_last() -> None:
    happened: list[str] = []

    @asynccontextmanager
    async def pool(p: Process) -> AsyncGenerator[str]:
        happened.append("open pool")
        yield "pool"
        happened.append("close pool")

    @asynccontextmanager
    async def queue(p: Process) -> AsyncGenerator[str]:
        used = await p.use(pool)
        happened.append("open queue")
        yield f"queue on {used}"
        happened.append("close queue")

    async with process().opened() as p:
        assert await p.use(queue) == "queue on pool"
        assert await p.use(pool) == "pool"
        assert await p.use(queue) == "queue on pool"
    assert happened == ["open pool", "open queue", "close queue", "close pool"]


async def test_everything_open_is_closed_when_a_later_provider_fails() -> None:
    happened: list[str] = []

    @asynccontextmanager
    async def first(p: Process) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            happened.append("closed")

    @asynccontextmanager
    async def broken(p: Process) -> AsyncGenerator[None]:
        await p.use(first)
        raise RuntimeError("no")
        yield

    with pytest.raises(RuntimeError, match="no"):
        async with process().opened() as p:
            await p.use(broken)
    assert happened == ["closed"]


async def test_providers_that_need_each_other_are_named() -> None:
    @asynccontextmanager
    async def hen(p: Process) -> AsyncGenerator[None]:
        await p.use(egg)
        yield

    @asynccontextmanager
    async def egg(p: Process) -> AsyncGenerator[None]:
        await p.use(hen)
        yield

    async with process().opened() as p:
        with pytest.raises(DependencyCycle, match=r"hen -> \S*egg -> \S*hen"):
            await p.use(hen)


async def test_a_service_that_fails_drains_its_siblings_and_the_status_is_70() -> None:
    drained: list[str] = []

    async def sibling(p: Process) -> Run:
        async def run(stop: asyncio.Event) -> None:
            await stop.wait()
            await asyncio.sleep(0.05)
            drained.append(p.state)

        return run

    async def failing(p: Process) -> Run:
        async def run(stop: asyncio.Event) -> None:
            raise RuntimeError("broken")

        return run

    assert await process().run([Service("sibling", sibling), Service("failing", failing)]) == 70
    assert drained == ["stopping"]


async def test_a_service_that_ends_by_itself_is_a_failure() -> None:
    async def ending(p: Process) -> Run:
        async def run(stop: asyncio.Event) -> None:
            return

        return run

    assert await process().run([Service("ending", ending)]) == 70


async def test_a_service_is_asked_to_stop_when_those_that_run_after_it_have_ended() -> None:
    happened: list[str] = []

    async def worker(p: Process) -> Run:
        async def run(stop: asyncio.Event) -> None:
            await stop.wait()
            await asyncio.sleep(0.05)
            happened.append("worker")

        return run

    async def operations(p: Process) -> Run:
        async def run(stop: asyncio.Event) -> None:
            signal.raise_signal(signal.SIGTERM)
            await stop.wait()
            happened.append("operations")

        return run

    services = [Service("worker", worker, after=("operations",)), Service("operations", operations)]
    assert await process().run(services) == 0
    assert happened == ["worker", "operations"]


async def test_services_start_behind_those_that_they_run_after() -> None:
    started: list[str] = []

    def named(name: str, *after: str) -> Service:
        async def make(p: Process) -> Run:
            async def run(stop: asyncio.Event) -> None:
                started.append(name)
                if len(started) == 3:
                    signal.raise_signal(signal.SIGTERM)
                await stop.wait()

            return run

        return Service(name, make, after)

    assert await process().run([named("worker", "sentinel"), named("sentinel", "pool"), named("pool")]) == 0
    assert started == ["pool", "sentinel", "worker"]


async def test_services_that_cannot_be_put_in_order_are_refused_before_anything_is_opened() -> None:
    opened: list[str] = []

    async def make(p: Process) -> None:
        opened.append(p.name)

    with pytest.raises(InvalidOrder, match="service worker runs after watcher, which the process does not have"):
        await process().run([Service("worker", make, after=("watcher",))])
    with pytest.raises(InvalidOrder, match=r"(a -> b -> a|b -> a -> b)"):
        await process().run([Service("a", make, after=("b",)), Service("b", make, after=("a",))])
    assert opened == []


# Real processes from here on.


def slow_request(url: str) -> socket.socket:
    """Send a login whose body is not complete; the server waits for the rest of it."""
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname, parts.port), timeout=30)
    body = b'{"username":"nobody","password":"nothing"}'
    head = (
        f"POST /auth/v1/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    )
    sock.sendall(head.encode() + b"\r\n" + body[:10])
    return sock


def test_clients_that_leave_when_ready_says_so_lose_no_request(project: Project) -> None:
    running = project.start("run-auth-http", env={"PROCESS_DRAIN_DELAY": "2s"})
    url = running.ready()
    leave = threading.Event()
    failures: list[str] = []
    counts = [0, 0]

    def balancer() -> None:
        while not leave.is_set():
            if httpx.get(f"{url}/ready").status_code == 503:
                leave.set()
            time.sleep(0.1)

    def client(number: int) -> None:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        while not leave.is_set():
            try:
                connection.request("GET", "/auth/v1/me" if number % 2 else "/health")
                answer = connection.getresponse()
                answer.read()
                counts[0] += 1
                counts[1] += answer.getheader("connection") == "close"
                if answer.status not in (200, 401):
                    failures.append(str(answer.status))
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
            if number % 3 == 0:
                connection.close()
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    threads.append(threading.Thread(target=balancer))
    for thread in threads:
        thread.start()
    eventually(lambda: counts[0] > 500)
    running.signal(signal.SIGTERM)
    for thread in threads:
        thread.join(30)
    assert running.wait() == 0
    assert failures == []
    assert counts[1] > 0, "no answer asked the client to leave"


def test_a_request_that_outlives_the_grace_is_cut_at_the_deadline(project: Project) -> None:
    running = project.start("run-auth-http", env={"PROCESS_GRACE": "1s"})
    with slow_request(running.ready()) as sock:
        started = time.monotonic()
        assert running.stop() == 0
        took = time.monotonic() - started
        answer = sock.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        assert b"retry-after: 1\r\n" in answer
        assert b"connection: close\r\n" in answer
        assert sock.recv(1000) == b""
    assert 1 <= took < 4
    assert any("cut" in message for message in running.messages())


def test_a_request_that_ends_within_the_grace_is_answered(project: Project) -> None:
    running = project.start("run-auth-http", env={"PROCESS_GRACE": "20s"})
    with slow_request(running.ready()) as sock:
        running.signal(signal.SIGTERM)
        eventually(lambda: "SIGTERM: draining" in running.messages())
        sock.sendall(b'"nobody","password":"nothing"}'.rjust(32)[-32:])
        answer = sock.recv(10_000)
    assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400", b"HTTP/1.1 422")), answer
    assert b"connection: close" in answer
    assert running.wait(10) == 0


def test_idle_keep_alive_connections_do_not_hold_the_stop(project: Project) -> None:
    running = project.start("run-auth-http", env={"PROCESS_GRACE": "20s"})
    url = running.ready()
    with httpx.Client(base_url=url) as client:
        assert client.get("/health").status_code == 200
        started = time.monotonic()
        assert running.stop() == 0
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("numbers", "window_s", "status"),
    [
        ((signal.SIGTERM, signal.SIGTERM), workers.ONE_SIGNAL_S, 0),  # to the process, and to its group
        ((signal.SIGTERM, signal.SIGTERM), 0.0, 130),  # later
        ((signal.SIGTERM, signal.SIGINT), workers.ONE_SIGNAL_S, 130),
    ],
)
async def test_the_same_signal_within_a_moment_is_one(
    monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, int], window_s: float, status: int
) -> None:
    monkeypatch.setattr(workers, "ONE_SIGNAL_S", window_s)

    async def make(p: Process) -> Run:
        async def run(stop: asyncio.Event) -> None:
            for number in numbers:
                signal.raise_signal(number)
            await stop.wait()

        return run

    assert await process().run([Service("service", make)]) == status


def test_a_second_signal_stops_at_once(project: Project) -> None:
    running = project.start("run-auth-http", env={"PROCESS_GRACE": "60s"})
    with slow_request(running.ready()):
        running.signal(signal.SIGTERM)
        eventually(lambda: "SIGTERM: draining" in running.messages())
        started = time.monotonic()
        running.signal(signal.SIGINT)
        assert running.wait() == 130
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_start_up_stops_cleanly(cli: Project, number: signal.Signals) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        env = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(closed.getsockname()[1])}
        running = cli.start("run-cron-manager", env=env)
        eventually(lambda: any("waiting for PostgreSQL" in message for message in running.messages()))
        running.signal(number)
        assert running.wait(10) == 0
    assert running.errors.read_text() == ""


@pytest.mark.parametrize("command", ["run-auth-http", "run-event-consumer", "run-all-in-one"])
def test_no_signal_ends_a_process_in_a_request_except_those_that_stop_it(project: Project, command: str) -> None:
    running = project.start(command)
    url = running.ready()
    log = running.output.stat().st_ino
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
        running.signal(number)
        assert httpx.get(f"{url}/health").status_code == 200, number
    eventually(lambda: "Current thread" in running.errors.read_text())  # what SIGUSR2 shows
    assert running.output.stat().st_ino == log
    running.signal(signal.SIGQUIT)
    assert running.wait() == 0
    assert "SIGQUIT: draining" in running.messages()


def test_a_hang_up_while_starting_does_not_end_a_process(cli: Project) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        env = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(closed.getsockname()[1])}
        running = cli.start("run-cron-manager", env=env)
        eventually(lambda: any("waiting for PostgreSQL" in message for message in running.messages()))
        running.signal(signal.SIGHUP)
        running.signal(signal.SIGUSR1)
        time.sleep(0.2)
        assert running.popen.poll() is None
        assert running.stop() == 0


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_signals_do_what_is_documented_while_a_process_is_loaded(cli: Project, number: str) -> None:
    loading = "app.cli._run = lambda _: (os.kill(os.getpid(), signal.Signals[sys.argv[2]]), print('went on'))"
    ended = subprocess.run(
        [cli.python, "-c", f"import app.cli, os, signal, sys; {loading}; app.cli.main()", "run-cron-manager", number],
        cwd=cli.root,
        env=cli.environment({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 0
    assert ended.stdout == ("" if number in ("SIGTERM", "SIGINT", "SIGQUIT") else "went on\n")
    assert ("most recent call first" in ended.stderr) == (number == "SIGUSR2")


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("error", [SystemExit(4), KeyboardInterrupt()])
def test_a_task_that_exits_ends_neither_the_loop_nor_other_tasks(
    factory: Callable[[], asyncio.AbstractEventLoop], error: BaseException
) -> None:
    async def leaves() -> None:
        raise error

    async def body() -> BaseException | None:
        other = asyncio.ensure_future(asyncio.sleep(0.01, "other"))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(leaves())
        except BaseException as raised:  # noqa: BLE001 - what an attempt of a job does
            assert await other == "other"
            return raised
        return None

    loop = factory()
    try:
        assert run_to_end(loop, body()) is error
        with pytest.raises(type(error)):
            run_to_end(loop, leaves())
    finally:
        loop.close()


def test_a_closed_terminal_drains_the_process_in_it(project: Project) -> None:
    terminal, side = os.openpty()
    running = subprocess.Popen(
        [project.python, "-m", "app", "run-auth-http", "--port", "0"],
        cwd=project.root,
        env=project.environment({"PROCESS_DRAIN_DELAY": "2s", "LOGGER_FORMAT": "console"}),
        stdin=side,
        stdout=side,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(side)
    try:
        said = ""
        while "serving" not in said or not said.endswith("\n"):
            said += os.read(terminal, 4096).decode()
        url = said.partition("serving ")[2].split()[0]
        with slow_request(url) as sock:
            eventually(lambda: httpx.get(f"{url}/ready").status_code == 200)
            running.send_signal(signal.SIGHUP)
            running.send_signal(signal.SIGHUP)
            eventually(lambda: httpx.get(f"{url}/ready").status_code == 503)
            sock.sendall(b'"nobody","password":"nothing"}'.rjust(32)[-32:])
            assert sock.recv(10_000).startswith(b"HTTP/1.1 4")
        assert running.wait(20) == 0
    finally:
        running.kill()
        running.wait()
        os.close(terminal)


def test_a_port_in_use_is_one_clear_line(cli: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for command in ("run-auth-http", "run-cron-manager"):
            ended = cli.app(command, "--port", str(port))
            assert ended.returncode == 69
            assert ended.stderr.splitlines() == [
                f"app: port {port} on 127.0.0.1 is in use; choose another with --port",
                "hint: app doctor --only ports",
            ]


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("nowhere.invalid", r"the host 'nowhere\.invalid' does not resolve \(.+\); give an address .+ with --host"),
        ("x" * 70, r"the host 'x{70}' does not resolve .+ with --host"),
        ("[::1]", r"the host '\[::1\]' does not resolve .+ with --host"),
        ("203.0.113.9", r"203\.0\.113\.9 is not an address of this machine; choose another with --host"),
        (
            "2001:db8::1",
            r"2001:db8::1 is (not an address of this machine|an IPv6 address.+); choose another with --host",
        ),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_one_line_that_names_the_option(
    cli: Project, host: str, says: str
) -> None:
    with pytest.raises(Unavailable) as refused:
        bind(host, 0)
    assert re.fullmatch(says, str(refused.value))
    secret = {"AUTH_MASTER_SECRET": secrets.token_urlsafe(32)}  # wanted where others can reach it
    ended = cli.app("run-event-consumer", "--host", host, env=secret)
    assert (ended.returncode, ended.stdout) == (69, "")
    assert re.fullmatch(f"app: {says}\n", ended.stderr)


def test_a_port_that_only_root_may_use_is_one_line_that_names_the_option(cli: Project) -> None:
    lowest = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if not lowest.exists() or int(lowest.read_text()) <= 1:
        pytest.skip("here everybody may use every port")
    become = "import os, encodings.idna; os.getuid() or os.setuid(65534)"
    body = f"from app.kernel.sockets import bind; {become}; bind('127.0.0.1', 1)"
    done = subprocess.run([cli.python, "-c", body], cwd=cli.root, capture_output=True, text=True, check=False)
    assert "port 1 on 127.0.0.1 is reserved for root; choose 1024 or higher with --port" in done.stderr


def test_a_name_with_addresses_of_both_families_is_listened_on_as_ipv4() -> None:
    with bind("localhost", 0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_every_process_answers_the_operators_while_it_lives(project: Project) -> None:
    commands = ("run-auth-http", "run-platform-http", "run-cron-manager", "run-event-consumer", "run-all-in-one")
    for running in [project.start(command) for command in commands]:
        url = running.ready()
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        assert "process_resident_memory_bytes" in httpx.get(f"{url}/metrics").text
        assert httpx.get(f"{url}/nowhere").status_code == 404
        assert httpx.post(f"{url}/health").status_code == 405
        assert running.stop() == 0


def test_a_loop_that_blocks_cannot_keep_the_process_alive(project: Project, tmp_path: Path) -> None:
    copied = project.copy(tmp_path / "copy")
    usecase = copied.root / "app/modules/auth/sign_in.py"
    text = usecase.read_text()
    usecase.write_text(text.replace("claims = await", "import time; time.sleep(120)\n        claims = await"))
    assert usecase.read_text() != text
    running = copied.start("run-auth-http")
    url = running.ready()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/auth/v1/logout", headers={"authorization": "Bearer x"}, timeout=1)
    running.signal(signal.SIGTERM)
    time.sleep(1)  # two within a moment are one
    running.signal(signal.SIGTERM)
    assert running.wait(20) == 130
    assert 'sign_in.py", line' in running.errors.read_text(), "it does not say what blocked"


def test_logs_of_a_process_are_json_lines_with_process_and_request(project: Project) -> None:
    running = project.start("run-auth-http")
    url = running.ready()
    httpx.get(f"{url}/auth/v1/me", headers={"x-request-id": "abc-1"})
    line = eventually(lambda: next((line for line in running.logs() if "/auth/v1/me" in line["message"]), None))
    assert {"time", "level", "message", "process", "pid", "request_id", "trace_id"} <= line.keys()
    assert (line["process"], line["pid"], line["request_id"]) == ("run-auth-http", running.pid, "abc-1")
    assert all(json.loads(text) for text in running.output.read_text().splitlines())
