"""A deployment of real processes on a real server, and what can be done to it. Everything done is written down."""

import asyncio
import compileall
import json
import os
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
import psycopg

from tests.conftest import Holder, TestDatabase
from tests.support.project import Project, Running

LEASE_S = 2.0
CONCURRENCY = 5
_SAID = 4000  # characters of what a process said last
CONSUMER, CRON = "run-event-consumer", "run-cron-manager"
_HERE = Path(__file__).parent

Cause = Literal["kill", "freeze", "outage"]


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that was done, between two moments of the monotonic clock; to every process when there is no pid."""

    cause: Cause
    began: float
    ended: float
    pid: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that ended, between two moments of the monotonic clock."""

    command: str
    status: int
    began: float
    ended: float
    said: str


@dataclass(frozen=True, slots=True)
class Run:
    """A handler that ran, as its worker wrote it down. `ended` is None when the worker never came so far."""

    pid: int
    kind: str
    key: str
    number: int
    began: float
    ended: float | None
    effective: bool


def with_chaos_module(project: Project, to: Path) -> Project:
    """Return a copy of the project that has the module `chaos`: one folder, one name, and its migration."""
    copied = project.copy(to)
    shutil.copytree(_HERE / "module", to / "app/modules/chaos", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (_HERE / "migrations").iterdir():
        shutil.copy(file, to / "migrations")
    modules = to / "app/modules/__init__.py"
    text, changed = re.subn(r"(MODULES = \([^)]*)\)", r'\1, "chaos")', modules.read_text())
    assert changed == 1
    modules.write_text(text)
    compileall.compile_dir(to / "app", quiet=2)  # processes do not store what they compile, and many are started
    return copied


@dataclass
class Deployment:
    """Consumers and cron managers of a copy of the project, on one database."""

    project: Project
    database: TestDatabase
    journals: Path
    incidents: list[Incident] = field(default_factory=list)
    alive: dict[int, tuple[str, Running]] = field(default_factory=dict)
    ended_early: list[Ended] = field(default_factory=list)
    started_at: dict[int, float] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    """What was told to end, and did."""
    lame: set[int] = field(default_factory=set)
    consumers: int = 0

    @classmethod
    def of(cls, project: Project, database: TestDatabase, folder: Path, **settings: object) -> "Deployment":
        """Return one without processes; `settings` are added to the environment."""
        journals = folder / "journals"
        journals.mkdir()
        copied = with_chaos_module(project, folder / "project")
        copied.env |= database.env | {
            "CHAOS_JOURNAL": str(journals),
            "QUEUE_NAMES": "default,narrow",
            "QUEUE_LEASE": f"{LEASE_S}s",
            "QUEUE_POLL_INTERVAL": "200ms",
            "QUEUE_CONCURRENCY": str(CONCURRENCY),
            **{key: str(value) for key, value in settings.items()},
        }
        return cls(copied, database, journals)

    # what it consists of

    def start(self, command: str, **env: str) -> Running:
        started = self.project.start(command, env=env)
        self.alive[started.pid] = (command, started)
        self.started_at[started.pid] = time.monotonic()
        self.consumers = max(self.consumers, len(self.pids(CONSUMER)))
        return started

    def pids(self, command: str) -> list[int]:
        return [pid for pid, (name, _) in self.alive.items() if name == command]

    def workers(self) -> list[int]:
        """Return the consumers that run and have run something, and have not just been frozen."""
        return [pid for pid in self.pids(CONSUMER) if pid not in self.lame and self._journal(pid).exists()]

    def serves(self, pid: int) -> bool:
        return any(line.get("url") for line in self.alive[pid][1].logs())

    def replace_ended(self) -> None:
        """Start anew what ended without being told to, as a service manager would."""
        for pid, (command, running) in list(self.alive.items()):
            status = running.popen.poll()
            if status is not None:
                del self.alive[pid]
                self.ended_early.append(self._end(command, running, status))
                self.start(command)

    def _end(self, command: str, running: Running, status: int) -> Ended:
        said = running.said()[-_SAID:] if status else ""
        return Ended(command, status, self.started_at[running.pid], time.monotonic(), said)

    # what can be done to it

    def kill(self, pid: int) -> None:
        """SIGKILL; another one is started in its place."""
        command, running = self.alive.pop(pid)
        began = time.monotonic()
        running.signal(signal.SIGKILL)
        running.popen.wait()
        self.incidents.append(Incident("kill", began, time.monotonic(), pid, command))
        self.start(command)

    def kill_at_work(self, kind: str) -> bool:
        """SIGKILL a worker in the midst of a handler of a kind; return whether there was one."""
        for pid in self.workers():
            running = self.alive[pid][1]
            running.signal(signal.SIGSTOP)
            _until_stopped(pid)
            if any(run.kind == kind and run.ended is None for run in self._read(pid)):
                self.kill(pid)
                return True
            running.signal(signal.SIGCONT)
        return False

    async def freeze(self, pid: int, seconds: float) -> bool:
        """SIGSTOP a worker in the midst of a handler, SIGCONT after a while; then it has time to do what it must not.

        A consumer stands still until others have taken from it what it held. Return whether it was in the midst of one;
        if not, it goes on at once.
        """
        command, running = self.alive[pid]
        began = time.monotonic()
        running.signal(signal.SIGSTOP)
        _until_stopped(pid)
        if command == CONSUMER and all(run.ended for run in self._read(pid)):
            running.signal(signal.SIGCONT)
            return False
        self.lame.add(pid)
        await asyncio.sleep(seconds)
        if command == CONSUMER:
            async with asyncio.timeout(60):
                while await asyncio.to_thread(self.may_hold_jobs, pid):
                    await asyncio.sleep(0.1)
        running.signal(signal.SIGCONT)
        self.incidents.append(Incident("freeze", began, time.monotonic(), pid, command))
        await asyncio.sleep(1.5)
        self.lame.discard(pid)
        return True

    async def drain(self, pid: int) -> None:
        """SIGTERM; another one is started in its place."""
        command, running = self.alive.pop(pid)
        running.signal(signal.SIGTERM)
        self.start(command)
        status = await asyncio.to_thread(running.wait, 60)
        self.ended.append(self._end(command, running, status))

    async def stop(self, command: str) -> None:
        """SIGTERM to all of a command, without replacement."""
        stopped: list[Running] = []
        for running in [self.alive.pop(pid)[1] for pid in self.pids(command)]:
            status = running.popen.poll()
            if status is not None:  # it had ended by itself, and nobody has looked since
                self.ended_early.append(self._end(command, running, status))
                continue
            running.signal(signal.SIGTERM)
            stopped.append(running)
        for running in stopped:
            status = await asyncio.to_thread(running.wait, 60)
            self.ended.append(self._end(command, running, status))

    async def interrupt(self, holder: Holder, how: str, seconds: float) -> None:
        """Take the server away, cleanly (`fast`) or not (`immediate`, `kill`); it is back after a while, or at once."""
        began = time.monotonic()
        postmaster = psutil.Process(holder.server.postmaster())
        if how == "fast":
            await asyncio.to_thread(holder.stop)
            await asyncio.to_thread(postmaster.wait, 60)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(holder.start)
        else:
            postmaster.send_signal(signal.SIGQUIT if how == "immediate" else signal.SIGKILL)
            await asyncio.to_thread(postmaster.wait, 60)
        while not await asyncio.to_thread(self.answers):
            await asyncio.sleep(0.05)
        self.incidents.append(Incident("outage", began, time.monotonic(), detail=how))

    # what is known of it

    def answers(self) -> bool:
        try:
            with psycopg.connect(self.database.conninfo, connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def may_hold_jobs(self, pid: int) -> bool:
        """Whether it has leases, or the server cannot be asked."""
        sql = "SELECT count(*) FROM kernel.jobs WHERE state = 'leased' AND leased_by = %s"
        try:
            return self.database.all(sql, f"{socket.gethostname()}:{pid}") != [(0,)]
        except psycopg.OperationalError:
            return True

    def _journal(self, pid: int) -> Path:
        return self.journals / f"{pid}.jsonl"

    def _read(self, pid: int) -> Iterator[Run]:
        begun: dict[tuple[str, str, int], list[float]] = {}
        for line in self._journal(pid).read_text().splitlines():
            at, what, *job = json.loads(line)
            kind, key, number = job
            if what == "began":
                begun.setdefault((kind, key, number), []).append(at)
            else:
                yield Run(pid, kind, key, number, begun[kind, key, number].pop(0), at, what == "ended")
        for (kind, key, number), moments in begun.items():
            for at in moments:
                yield Run(pid, kind, key, number, at, None, effective=False)

    def runs(self) -> list[Run]:
        """Return every run of a handler, in the order of their beginning."""
        found = [run for path in self.journals.glob("*.jsonl") for run in self._read(int(path.stem))]
        return sorted(found, key=lambda run: run.began)

    def messages(self) -> Iterator[tuple[int, str]]:
        """Yield pid and text of every line of the logs of all processes there ever were."""
        for running in self.project.running:
            for line in running.output.read_text().splitlines():
                if line.startswith("{") and line.endswith("}"):
                    yield running.pid, json.loads(line)["message"]


def _until_stopped(pid: int) -> None:
    """SIGSTOP takes effect a moment after it was sent."""
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        os.sched_yield()


def pick(rng: random.Random, pids: list[int]) -> int | None:
    """Return one of them, the same for the same seed; None when there is none."""
    return rng.choice(sorted(pids)) if pids else None
