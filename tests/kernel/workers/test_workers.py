"""`--workers`: a supervisor and its workers, as processes, under load. `just reloads 30` reloads more often."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import psutil

from tests.conftest import TestDatabase, log_in
from tests.support.activation import Activation, listening
from tests.support.load import Load
from tests.support.project import ROOT, Project, Running, eventually
from tests.support.systemd import inbox

RELOADS = int(os.environ.get("RELOADS", "2"))
ENV = {"PROCESS_DRAIN_DELAY": "300ms", "PROCESS_WORKER_TIMEOUT": "2s"}


LATE = """
import os, signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
signal.alarm(20)
with socket.socket(fileno=int(os.environ["APP_WORKER"].split(":")[-1])) as supervisor:
    for number in (1, 2):
        supervisor.sendall(b'["http", "127.0.0.1", 0, ""]')
        print(socket.recv_fds(supervisor, 65536, 1)[0], flush=True)
        if number == 1:
            signal.sigwait({signal.SIGTERM})
    raise SystemExit(69)
"""
"""A worker that asks for the same socket twice, again when it is told to stop."""


def workers_of(running: Running) -> list[int]:
    return [child.pid for child in psutil.Process(running.pid).children()]


def bearer(client: httpx.Client) -> str:
    return client.headers["authorization"].removeprefix("Bearer ")


def value(url: str, name: str) -> float:
    """Return a metric summed over its labels."""
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return sum(float(text) for text in found)


def said(running: Running, text: str) -> int:
    return sum(text in message for message in running.messages())


def roles(database: TestDatabase) -> list[str]:
    return [name for (name,) in database.all("SELECT name FROM auth.roles")]


def test_reloads_under_load_lose_and_double_nothing(project: Project, database: TestDatabase) -> None:
    running = project.start("run-auth-http", "--workers", "2", env=ENV)
    client = log_in(project, running)
    url, first = running.url(), set(workers_of(running))
    counted = [value(url, "http_server_requests_total")]

    def reload() -> None:
        for number in range(1, RELOADS + 1):
            running.signal(signal.SIGHUP)
            while said(running, "reloaded 2 workers") != number:
                counted.append(value(url, "http_server_requests_total"))
                assert httpx.get(f"{url}/ready").status_code == 200
                time.sleep(0.1)
        subprocess.run(["kill", "-TERM", str(workers_of(running)[0])], check=True)  # it drains, and is replaced
        eventually(lambda: said(running, "ended with status 0; starting another one"))
        eventually(lambda: httpx.get(f"{url}/ready").status_code == 200)

    load = Load(url, bearer(client)).during(reload)
    assert load.failed == []
    assert load.answered > 100
    found = roles(database)
    assert len(found) == len(set(found)) == len(load.created)
    assert counted == sorted(counted)
    assert counted[-1] > load.answered / 2
    assert first.isdisjoint(workers_of(running))
    reported = database.all("SELECT services[1], worker, workers, memory_bytes > 2e7 FROM kernel.processes ORDER BY 1")
    assert reported == [("worker 1/2", 1, 2, True), ("worker 2/2", 2, 2, True)]
    assert running.stop() == 0
    assert {line.get("worker") for line in running.logs()} == {None, 1, 2}


def test_a_worker_that_is_killed_or_hangs_is_replaced(project: Project, database: TestDatabase) -> None:
    running = project.start("run-auth-http", "--workers", "2", env=ENV)
    client = log_in(project, running)
    url = running.url()
    before = value(url, "http_server_requests_total")

    def kill() -> None:
        time.sleep(0.5)
        subprocess.run(["kill", "-9", str(workers_of(running)[0])], check=True)
        eventually(lambda: said(running, "was killed by SIGKILL; starting another one"))
        eventually(lambda: httpx.get(f"{url}/ready").status_code == 200)

    load = Load(url, bearer(client)).during(kill)
    assert len(load.failed) <= 8, load.failed  # the requests in flight of one worker: at most one of each client
    assert load.answered > 50
    found = roles(database)
    assert len(found) == len(set(found))
    assert load.created <= set(found) <= load.sent
    assert value(url, "http_server_requests_total") >= before
    hung = workers_of(running)[0]
    psutil.Process(hung).suspend()
    answer = eventually(lambda: (found := httpx.get(f"{url}/ready")).status_code == 503 and found)
    assert list(answer.json()["missing"].values()) == ["no answer"]
    assert value(url, "worker_up") == 1
    eventually(lambda: said(running, "hangs: no heartbeat for 3 s; killing it"))
    eventually(lambda: httpx.get(f"{url}/ready").status_code == 200)
    assert hung not in workers_of(running)
    assert value(url, "worker_restarts_total") == 2
    assert running.stop() == 0


def test_a_reload_that_fails_keeps_the_former_workers(project: Project, tmp_path: Path) -> None:
    copied = project.copy(tmp_path / "copy")
    running = copied.start("run-event-consumer", "--workers", "2", env=ENV)
    url, first = running.ready(), set(workers_of(running))
    settings = copied.root / "settings/test.yaml"
    good = settings.read_text()
    settings.write_text(good + "\nnothing:\n  such: 1\n")
    running.signal(signal.SIGHUP)
    eventually(lambda: said(running, "reload failed: the new worker 1 ended with status 78; the former workers 1 to 2"))
    assert set(workers_of(running)) == first
    assert httpx.get(f"{url}/ready").status_code == 200
    settings.write_text(good)
    for _ in range(3):  # those that come during a reload are one more
        running.signal(signal.SIGHUP)
        time.sleep(0.2)
    eventually(lambda: said(running, "reloaded 2 workers") == 2)
    assert first.isdisjoint(workers_of(running))
    assert said(running, "reloading 2 workers, one by one") == 3
    running.signal(signal.SIGHUP)
    pids = eventually(lambda: len(found := workers_of(running)) == 3 and found)
    workers = [psutil.Process(pid) for pid in pids]
    assert running.stop() == 0  # in the middle of the reload
    _, alive = psutil.wait_procs(workers, 10)  # the system reaps what its parent has left
    assert alive == []


def test_the_first_start_fails_as_that_of_one_process(project: Project) -> None:
    running = project.start("run-auth-http", "--workers", "2", env={"HTTP_SERVER_MAX_BODY_BYTES": "x"})
    assert running.wait() == 78
    assert running.errors.read_text().count("http_server.max_body_bytes") == 1


def test_workers_end_with_their_supervisor(project: Project) -> None:
    running = project.start("run-auth-http", "--workers", "2", env=ENV)
    running.ready()
    workers = [psutil.Process(pid) for pid in workers_of(running)]
    running.signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(workers, 10)
    assert (len(gone), alive) == (2, [])
    assert said(running, "stopped") == 2


def test_a_worker_that_asks_for_a_socket_while_all_stop_is_refused() -> None:
    program = [sys.executable, "-P", str(ROOT / "app/kernel/workers/__main__.py"), "run-auth-http", "1", str(ROOT)]
    with subprocess.Popen([*program, sys.executable, "-c", LATE], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        assert p.stdout is not None
        p.stdout.readline()
        p.send_signal(signal.SIGTERM)
        out, err = p.communicate(timeout=30)
    assert b"stopped before having started" in out
    assert p.returncode == 0
    assert b"Traceback" not in err


def test_systemd_hears_one_service_whose_socket_stays_open(project: Project, tmp_path: Path) -> None:
    with inbox(str(tmp_path / "notify")) as systemd, Activation(listening(), names="http") as activation:
        env = ENV | {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "4000000", "OPERATIONS_EXPOSE": "separate"}
        env["OPERATIONS_PORT"] = "0"
        running = project.start("run-auth-http", "--workers", "2", env=env, activation=activation)
        systemd.wait("READY", "1", 60)
        assert said(running, "2 workers are ready") == 1
        systemd.wait("STATUS", "2 of 2 workers ready")
        systemd.wait("WATCHDOG", "1")
        before = len(systemd.received)
        running.signal(signal.SIGHUP)
        systemd.wait("RELOADING", "1", 60, after=before)
        systemd.wait("READY", "1", 60, after=before)
        served = {line["url"] for line in running.logs() if line.get("listener") == "operations"}
        assert len(served) == 1  # one free port for all workers, former and new
        answer = httpx.get(f"{served.pop()}/metrics", headers={"accept": "application/openmetrics-text"}).text
        assert 'worker_up{worker="2"} 1.0' in answer
        for worker in workers_of(running):
            psutil.Process(worker).suspend()
        eventually(lambda: said(running, "killing it") == 2)
        before = len(systemd.received)
        running.signal(signal.SIGTERM)
        running.signal(signal.SIGINT)
        assert running.wait() == 130
        assert any(name == "STOPPING" for _, name, _ in systemd.received[before:]) or systemd.wait("STOPPING", "1")


def test_under_timeout_which_signals_the_process_group_too_workers_drain(project: Project, tmp_path: Path) -> None:
    script = tmp_path / "timed"
    script.write_text(f'#!/bin/sh\nexec timeout 300 {shlex.quote(project.python)} "$@"\n')
    script.chmod(0o700)
    running = replace(project, python=str(script)).start("run-auth-http", "--workers", "2", env=ENV)
    running.ready()
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert not [message for message in running.messages() if "again" in message]
    assert said(running, "draining") == 2


def test_a_port_in_use_and_a_foreign_socket_end_the_start(project: Project) -> None:
    with listening() as taken:
        port = str(taken.getsockname()[1])
        running = project.start("run-auth-http", "--workers", "2", "--port", port)
        assert running.wait() == 69
    (line,) = (line for line in running.errors.read_text().splitlines() if not line.startswith("hint: "))
    assert "is in use; choose another with --port" in line
    with Activation(listening(), listening(), names="http:b.socket") as activation:
        running = project.start("run-auth-http", "--workers", "2", activation=activation)
        assert running.wait() == 78
    assert said(running, "no listener of this process uses the inherited socket 'b.socket'") == 1


def test_the_supervisor_loads_the_standard_library_only() -> None:
    script = "import sys, app.kernel.workers.supervisor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert {name for name in loaded if not name.startswith("_")} - {"app"} <= sys.stdlib_module_names
