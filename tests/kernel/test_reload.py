"""SIGHUP: reloads what may change, and never ends a process."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from loguru import logger

from app.kernel.config import load
from app.kernel.errors import Unavailable
from app.kernel.process import Process, reload
from app.kernel.process.launch import Launch
from app.kernel.services import Run, Service
from app.kernel.systemd.notify import Notifier
from app.processes import sections
from tests.support.project import ROOT, Project, eventually
from tests.support.systemd import Inbox, inbox


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message).strip()), format="{message}", level="INFO")
    yield lines
    logger.remove(sink)


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[Inbox]:
    with inbox(f"@reload-{os.getpid()}") as opened:
        yield opened


async def run(
    during: Callable[[Process], Awaitable[None]], *callbacks: tuple[str, reload.Reload], notify: Notifier | None = None
) -> int:
    """Run a process with callbacks until `during` is done; return its exit status."""
    settings = load(ROOT, sections(), {"APP_ENV": "test", "PROCESS_DRAIN_DELAY": "0s"})
    p = Process("test", settings, ROOT, launch=Launch(notify=notify or Notifier()))
    for name, callback in callbacks:
        p.on_reload(name, callback)

    async def make(_: Process) -> Run:
        async def service(stop: asyncio.Event) -> None:
            await during(p)
            os.kill(os.getpid(), signal.SIGTERM)
            await stop.wait()

        return service

    return await p.run([Service("during", make)])


def hang_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_callbacks_run_one_after_the_other_and_say_what_they_did(said: list[str], notified: Inbox) -> None:
    order: list[str] = []

    async def certificates() -> str:
        order.append("certificates begin")
        await asyncio.sleep(0.01)
        order.append("certificates end")
        return "2 files"

    async def secrets() -> None:
        order.append("secrets")

    async def during(_: Process) -> None:
        hang_up()
        await until(lambda: "reloaded certificates: 2 files" in said and len(order) == 3)

    callbacks = (("certificates", certificates), ("secrets", secrets))
    assert await run(during, *callbacks, notify=Notifier(notified.address)) == 0
    assert order == ["certificates begin", "certificates end", "secrets"]
    assert "nothing to reload" not in said
    fields = notified.fields()
    at = next(at for at, each in enumerate(fields) if each == "RELOADING=1")
    assert fields[at + 1].startswith("MONOTONIC_USEC=")
    assert fields[at + 2 : at + 4] == ["STATUS=reloading", "READY=1"]


async def test_without_anything_that_changed_the_log_says_so(said: list[str]) -> None:
    async def unchanged() -> None:
        pass

    async def during(_: Process) -> None:
        hang_up()
        await until(lambda: "nothing to reload" in said)

    assert await run(during, ("secrets", unchanged)) == 0
    assert not [line for line in said if line.startswith("reloaded")]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Unavailable("the vault is sealed"), "reloading first failed: the vault is sealed"),
        (OSError(13, "Permission denied", "/etc/key.pem"), "reloading first failed: "),
        (ZeroDivisionError("oh"), "reloading first failed: ZeroDivisionError: oh"),
        (SystemExit(3), "reloading first failed: "),
        (asyncio.CancelledError(), "reloading first failed: "),
    ],
)
async def test_a_callback_that_fails_stops_neither_the_others_nor_the_process(
    said: list[str], error: BaseException, line: str
) -> None:
    async def fails() -> str:
        raise error

    async def works() -> str:
        return "done"

    async def during(_: Process) -> None:
        for times in (1, 2):
            hang_up()
            await until(lambda times=times: said.count("reloaded second: done") == times)

    assert await run(during, ("first", fails), ("second", works)) == 0
    assert len([each for each in said if each.startswith(line)]) == 2, said
    assert "nothing to reload" not in said


async def test_a_callback_that_hangs_is_cancelled_after_its_limit(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_LIMIT_S", 0.05)

    async def hangs() -> None:
        await asyncio.sleep(60)

    async def works() -> str:
        return "done"

    async def during(_: Process) -> None:
        hang_up()
        await until(lambda: "reloaded second: done" in said)

    assert await run(during, ("first", hangs), ("second", works)) == 0
    assert "reloading first took longer than 0.05 s and was cancelled" in said


async def test_signals_during_a_reload_cause_one_more(said: list[str]) -> None:
    begun, release = 0, asyncio.Event()

    async def counts() -> str:
        nonlocal begun
        begun += 1
        await release.wait()
        return f"time {begun}"

    async def during(_: Process) -> None:
        hang_up()
        await until(lambda: begun == 1)
        for _ in range(20):
            hang_up()
        await asyncio.sleep(0.05)
        assert begun == 1
        release.set()
        await until(lambda: "reloaded counts: time 2" in said)
        await asyncio.sleep(0.05)

    assert await run(during, ("counts", counts)) == 0
    assert begun == 2


async def test_a_signal_while_starting_reloads_once_ready_and_one_while_stopping_does_nothing(said: list[str]) -> None:
    p = Process("test", load(ROOT, sections(), {"APP_ENV": "test"}), ROOT)
    states: list[str] = []

    async def records() -> str:
        states.append(p.state)
        return p.state

    async def make(_: Process) -> Run:
        hang_up()
        await asyncio.sleep(0.05)
        assert states == []

        async def service(stop: asyncio.Event) -> None:
            await until(lambda: states)
            os.kill(os.getpid(), signal.SIGTERM)
            await stop.wait()
            hang_up()
            await asyncio.sleep(0.05)

        return service

    p.on_reload("state", records)
    assert await p.run([Service("service", make)]) == 0
    assert states == ["ready"]


def test_a_process_tells_that_it_reopened_its_log_or_has_nothing_to_reload(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = folder / "app.log"
    to_file = project.start("run-cron-manager", env={"LOGGER_OUTPUT": str(log)})
    to_stdout = project.start("run-cron-manager")
    to_stdout.ready()
    eventually(lambda: log.exists() and "health and metrics on" in log.read_text())
    to_stdout.signal(signal.SIGHUP)
    eventually(lambda: "nothing to reload" in to_stdout.messages())
    log.rename(folder / "app.log.1")
    to_file.signal(signal.SIGHUP)
    eventually(lambda: log.exists() and f"reloaded log: reopened {log}" in log.read_text())
    folder.rename(tmp_path / "gone")  # the old file goes on
    to_file.signal(signal.SIGHUP)
    eventually(lambda: "reloading log failed: " in (tmp_path / "gone/app.log").read_text())
    assert (to_file.stop(), to_stdout.stop()) == (0, 0)
