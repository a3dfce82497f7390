"""The notification protocol of systemd: what a process reports, and its watchdog."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from app.kernel.systemd.notify import Notifier
from tests.conftest import log_in, program
from tests.support.project import Project, add_feature, eventually
from tests.support.systemd import Inbox, Unit, inbox

WATCHDOG_S = 2.0

BLOCKING = """
import time
from dataclasses import dataclass

from app.kernel.actions import Database, read, subscriber
from app.modules.auth.portal import SessionStarted


@dataclass(frozen=True)
class Done:
    done: bool


@dataclass(frozen=True)
class Blocking:
    @read("platform.block_request", GET="/platform/v1/block", public=True)
    async def request(self, db: Database) -> Done:
        \"\"\"Block the event loop.\"\"\"
        time.sleep(60)
        return Done(True)

    @read("platform.compute", GET="/platform/v1/compute", public=True)
    async def compute(self, db: Database) -> Done:
        \"\"\"Compute for a few milliseconds.\"\"\"
        return Done(sum(range(100_000)) > 0)

    @subscriber("platform.block_job", SessionStarted)
    async def job(self, db: Database, event: SessionStarted) -> None:
        \"\"\"Block the event loop.\"\"\"
        time.sleep(60)
"""


@pytest.fixture(params=["path", "abstract"])
def notified(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Inbox]:
    address = f"@notify-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with inbox(address) as opened:
        yield opened


def test_a_message_arrives_over_a_path_and_an_abstract_name(notified: Inbox) -> None:
    notifier = Notifier.taken_from({"NOTIFY_SOCKET": notified.address})
    notifier.extend(1.5)
    notifier.ready()
    notifier.status("ready\n  7 jobs\n")
    notifier.status("ready 7 jobs")  # unchanged
    notifier.ping()
    notifier.stopping(30)
    notifier.close()
    assert notified.fields() == [
        *("EXTEND_TIMEOUT_USEC=1500000", "READY=1", "STATUS=ready", "STATUS=ready 7 jobs"),
        *("WATCHDOG=1", "STOPPING=1", "EXTEND_TIMEOUT_USEC=30000000", "STATUS=draining"),
    ]


@pytest.mark.parametrize(
    ("period", "owner", "watchdog_s"),
    [
        ("1500000", "", 1.5),
        ("1500000", "ours", 1.5),
        ("1500000", "our parent's", 0),
        ("", "", 0),
        ("soon", "", 0),
        ("²", "", 0),
    ],
)
def test_the_environment_is_taken_so_that_no_child_inherits_it(period: str, owner: str, watchdog_s: float) -> None:
    owner = {"ours": str(os.getpid()), "our parent's": str(os.getppid())}.get(owner, owner)
    environment = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": period, "WATCHDOG_PID": owner, "HOME": "/"}
    notifier = Notifier.taken_from(environment)
    assert environment == {"HOME": "/"}
    assert (notifier.is_on, notifier.watchdog_s) == (True, watchdog_s)


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/nowhere/notify", "@nobody", "/" + "x" * 200])
def test_a_socket_that_is_not_there_is_ignored(address: str) -> None:
    notifier = Notifier.taken_from({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    for call in (notifier.ready, notifier.ping, notifier.reloading, lambda: notifier.status("s"), notifier.close):
        call()


def test_messages_to_a_systemd_that_does_not_read_never_block_and_come_in_order(tmp_path: Path) -> None:
    with inbox(str(tmp_path / "notify")) as slow:
        notifier = Notifier(slow.address)
        began, sent = time.monotonic(), 0
        while notifier._send(b"X=1"):
            sent += 1
        notifier.reloading()
        notifier.ready()
        notifier.status("late")
        assert time.monotonic() - began < 5
        assert slow.fields() == ["X=1"] * sent
        notifier.status("late")
        names = [line.partition("=")[0] for line in slow.fields()[sent:]]
        assert names == ["RELOADING", "MONOTONIC_USEC", "STATUS", "READY", "STATUS", "STATUS"]
        notifier.close()


def blocking(project: Project, tmp_path: Path) -> Project:
    """Return a copy of the project with a request and a job that block."""
    copied = project.copy(tmp_path / "copy")
    add_feature(copied, "blocking:Blocking", BLOCKING)
    return copied


def test_a_process_reports_each_state_and_its_children_do_not_inherit_the_socket(cli: Project, tmp_path: Path) -> None:
    copied = cli.copy(tmp_path / "copy")  # with an embedded server, which is a child
    with inbox(str(tmp_path / "notify")) as opened:
        env = {"NOTIFY_SOCKET": opened.address, "WATCHDOG_USEC": "60000000", "PROCESS_DRAIN_DELAY": "300ms"}
        running = copied.start("run-all-in-one", env=env)
        opened.wait("EXTEND_TIMEOUT_USEC")
        opened.wait("STATUS", "starting")
        opened.wait("READY")
        url = running.ready()
        opened.wait("STATUS", "ready; 0 jobs and 0 requests in flight")
        for child in children(running.pid):
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{child}/environ").read_bytes()
        assert children(running.pid)
        assert httpx.get(f"{url}/health").status_code == 200
        before = len(opened.fields())
        running.signal(signal.SIGHUP)
        opened.wait("READY", after=before)
        Path(opened.address).unlink()  # systemd is gone: ignored
        running.signal(signal.SIGHUP)
        eventually(lambda: running.messages().count("nothing to reload") == 2)
        with inbox(opened.address) as again:
            assert running.stop() == 0
            fields = again.fields()
        at = fields.index("STOPPING=1")
        assert fields[at + 1 : at + 3] == ["EXTEND_TIMEOUT_USEC=20300000", "STATUS=draining"]  # 0.3 + 5 + 15 s
        assert running.errors.read_text() == ""


def test_what_a_command_starts_does_not_inherit_the_socket(project: Project) -> None:
    program("psql")
    env = {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    shown = project.app("db", "shell", "-c", r"\! env", env=env)
    assert "PGDATABASE=" in shown.stdout, shown.stderr
    assert "NOTIFY_SOCKET" not in shown.stdout
    assert "WATCHDOG" not in shown.stdout


def children(pid: int) -> list[int]:
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [below for child in found for below in children(child)]


@pytest.mark.parametrize("work", ["request", "job"])
def test_a_blocked_event_loop_is_aborted_and_restarted_and_says_where_it_hung(
    project: Project, tmp_path: Path, work: str
) -> None:
    copied = blocking(project, tmp_path)
    with inbox(str(tmp_path / "notify")) as opened:
        unit = Unit(lambda env: copied.start("run-all-in-one", env=env), opened, WATCHDOG_S)
        unit.wait_until(unit.is_ready)
        hung = unit.process
        url = hung.ready()
        with suppress(httpx.TimeoutException):
            if work == "job":
                log_in(copied, hung)
            else:
                httpx.get(f"{url}/platform/v1/block", timeout=0.5)
        unit.wait_until(lambda: unit.ended)
        assert unit.ended == [-signal.SIGABRT]
        said = hung.errors.read_text()
        assert "Fatal Python error: Aborted" in said
        assert re.search(rf'blocking\.py", line \d+ in {work}\n', said), said
        unit.wait_until(unit.is_ready)
        assert httpx.get(f"{unit.process.ready()}/health").status_code == 200
        assert unit.process.stop() == 0


def test_a_busy_event_loop_never_misses_a_ping(project: Project, tmp_path: Path) -> None:
    copied, ended = blocking(project, tmp_path), threading.Event()

    def load(url: str) -> None:
        with httpx.Client() as client:
            while not ended.is_set():
                client.get(f"{url}/platform/v1/compute")

    with inbox(str(tmp_path / "notify")) as opened:
        unit = Unit(lambda env: copied.start("run-platform-http", env=env), opened, WATCHDOG_S)
        unit.wait_until(unit.is_ready)
        url = unit.process.ready()
        threads = [threading.Thread(target=load, args=(url,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            unit.wait_until(lambda: len(unit.gaps) >= 5)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert unit.ended == []
        assert max(unit.gaps) < WATCHDOG_S * 0.75
        assert unit.process.stop() == 0
