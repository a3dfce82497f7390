"""The five processes on one server behind a bad network, load on them, and the ways in which a database goes away."""

import asyncio
import json
import math
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import psycopg

from tests.conftest import log_in
from tests.support.debian import DebianServer
from tests.support.project import Project, Running, eventually
from tests.support.proxy import Proxy

PROCESSES = {
    "run-all-in-one": "/auth/v1/me",
    "run-auth-http": "/auth/v1/me",
    "run-platform-http": "/platform/v1/queues",
    "run-cron-manager": "",
    "run-event-consumer": "",
}
# a pool that a few dozen requests a second exceed, with its queue, within a second
SETTINGS = {"POSTGRES_POOL_SIZE": "4", "POSTGRES_POOL_QUEUE": "16", "POSTGRES_STARTUP_TIMEOUT": "60s"}
READY_S = 2.5  # /ready may take so long
APART = "apart"  # the queue of the event consumer alone
_APP = "datname = 'app' AND usename = 'app'"


@dataclass
class Fleet:
    """All processes, running, and a token that is good for them."""

    server: DebianServer
    proxy: Proxy
    running: dict[str, Running]
    token: str

    @classmethod
    def start(cls, project: Project, server: DebianServer, proxy: Proxy, **env: str) -> "Fleet":
        project.env |= {
            **server.env,
            **SETTINGS,
            "POSTGRES_PORT": str(proxy.port),
            "AUTH_ACCESS_TOKEN_TTL": "2h",
            **env,
        }
        first = project.start("run-all-in-one")
        client = log_in(project, first)
        running = {"run-all-in-one": first}
        for name in list(PROCESSES)[1:]:
            running[name] = project.start(name, *(("--queue", APART) if name == "run-event-consumer" else ()))
        for process in running.values():
            process.ready()
        return cls(server, proxy, running, client.headers["Authorization"])

    def url(self, name: str) -> str:
        return self.running[name].url()

    def execute(self, sql: str, db: str = "app") -> list[tuple]:
        """Run a statement as the superuser, round the proxy, also while the database is read-only."""
        with self.server.connect(db) as connection:
            connection.execute("SET default_transaction_read_only = off")
            found = connection.execute(sql)
            return found.fetchall() if found.description else []

    def expel(self) -> None:
        """End every session of the processes."""
        self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_APP}", "postgres")


@dataclass
class Load:
    """Requests to every API at a steady rate, whatever is answered, each on a connection of its own."""

    fleet: Fleet
    per_second: float
    answers: Counter[str] = field(default_factory=Counter)
    slowest_s: dict[str, float] = field(default_factory=dict)
    acknowledged: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator["Load"]:
        thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(30)

    async def _run(self) -> None:
        ports = {name: int(self.fleet.url(name).rpartition(":")[2]) for name, path in PROCESSES.items() if path}
        async with asyncio.TaskGroup() as group:
            number = 0
            while not self._stop.is_set():
                number += 1
                for name, port in ports.items():
                    group.create_task(self._ask(port, "GET", PROCESSES[name]))
                if number % 3 == 0:
                    group.create_task(self._ask(ports["run-auth-http"], "POST", "/auth/v1/roles", f"r-{uuid.uuid4()}"))
                if number % 10 == 0:
                    for port in ports.values():
                        group.create_task(self._ask(port, "GET", "/health"))
                await asyncio.sleep(1 / self.per_second)

    async def _ask(self, port: int, method: str, path: str, role: str = "") -> None:
        body = json.dumps({"name": role}) if role else ""
        started = time.monotonic()
        said = b""
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {self.fleet.token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            said = await reader.read()
            writer.close()
        status = said[9:12].decode() or "nothing"
        if status == "503" and b"\r\nretry-after: " not in said.lower():
            status = "503 without Retry-After"
        if status == "201":
            self.acknowledged.append(role)
        self.answers[f"{path} {status}"] += 1
        self.slowest_s[path] = max(self.slowest_s.get(path, 0), time.monotonic() - started)

    def lost(self) -> list[str]:
        """Return what was acknowledged and is not there."""
        kept = {name for (name,) in self.fleet.execute("SELECT name FROM auth.roles")}
        return [name for name in self.acknowledged if name not in kept]


def back_after(fleet: Fleet, name: str, timeout_s: float = 30) -> float:
    """Return after how many seconds a process serves: it is ready, and does its work."""
    started = time.monotonic()

    def serves() -> bool:
        with httpx.Client(
            base_url=fleet.url(name), headers={"Authorization": fleet.token}, timeout=timeout_s
        ) as client:
            if client.get("/ready").status_code != 200:
                return False
            return not PROCESSES[name] or client.get(PROCESSES[name]).status_code == 200

    eventually(serves, timeout_s, 0.02)
    if name == "run-event-consumer":
        done = f"SELECT count(*) FROM kernel.finished_jobs WHERE queue = '{APART}'"
        [(before,)] = fleet.execute(done)
        fleet.execute(
            "INSERT INTO kernel.jobs (id, queue, task, state, rank, max_attempts, timeout_s, run_at)"
            f" VALUES (kernel.uuid7(), '{APART}', 'platform.heartbeat', 'ready', 0, 3, 10, now())"
        )
        eventually(lambda: fleet.execute(done) > [(before,)], timeout_s, 0.02)
    return time.monotonic() - started


def back_of_all(fleet: Fleet) -> dict[str, float]:
    """Return after how many seconds each process serves; infinity for one that does not."""

    def measured(name: str) -> float:
        try:
            return back_after(fleet, name)
        except AssertionError:
            return math.inf

    with ThreadPoolExecutor() as threads:
        return dict(zip(PROCESSES, threads.map(measured, PROCESSES), strict=True))


Outage = Callable[[Fleet], AbstractContextManager[Any]]


@contextmanager
def stopped(fleet: Fleet) -> Iterator[None]:
    """It is stopped, and started again."""
    fleet.server.stop()
    yield
    fleet.server.start()


@contextmanager
def frozen(fleet: Fleet) -> Iterator[None]:
    """Every process of it stands still: connections stay open, nothing answers."""
    assert fleet.server.process is not None
    postmaster = psutil.Process(fleet.server.process.pid)
    postmaster.send_signal(signal.SIGSTOP)
    everything = [postmaster, *postmaster.children(recursive=True)]
    for process in everything:
        process.send_signal(signal.SIGSTOP)
    yield
    for process in everything:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


@contextmanager
def full(fleet: Fleet) -> Iterator[None]:
    """Others have all its connections."""
    with ExitStack() as taken:
        sessions = f"SELECT count(*) FROM pg_stat_activity WHERE {_APP}"
        first = taken.enter_context(fleet.server.connect())
        without = 0
        while without < 10:  # a session that ends leaves the list before its place is free
            without = without + 1 if first.execute(sessions).fetchall() == [(0,)] else 0
            first.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_APP}")
            with suppress(psycopg.OperationalError):
                while True:
                    taken.enter_context(fleet.server.connect())
            time.sleep(0.02)
        yield


@contextmanager
def read_only(fleet: Fleet) -> Iterator[None]:
    """An operator makes it read-only, and ends the sessions that were before."""
    fleet.execute("ALTER DATABASE app SET default_transaction_read_only = on", "postgres")
    fleet.expel()
    yield
    fleet.execute("ALTER DATABASE app RESET default_transaction_read_only", "postgres")


@contextmanager
def read_only_from_now(fleet: Fleet) -> Iterator[None]:
    """An operator makes it read-only for new sessions, and there are only old ones; balancers ask whether to go on."""
    fleet.execute("ALTER ROLE app IN DATABASE app SET default_transaction_read_only = 'yes'", "postgres")
    for name in PROCESSES:
        assert httpx.get(f"{fleet.url(name)}/ready", timeout=30).status_code == 503
    yield
    fleet.execute("ALTER ROLE app IN DATABASE app RESET default_transaction_read_only", "postgres")


@contextmanager
def read_only_server(fleet: Fleet) -> Iterator[None]:
    """The whole server is made read-only, in the midst of every session."""
    fleet.execute("ALTER SYSTEM SET default_transaction_read_only = on", "postgres")
    fleet.execute("SELECT pg_reload_conf()", "postgres")
    yield
    fleet.execute("ALTER SYSTEM RESET default_transaction_read_only", "postgres")
    fleet.execute("SELECT pg_reload_conf()", "postgres")


@contextmanager
def cut(fleet: Fleet) -> Iterator[None]:
    """The network lets nothing through."""
    fleet.proxy.hold()
    yield
    fleet.proxy.go_on()


@contextmanager
def forgotten(fleet: Fleet) -> Iterator[None]:
    """The network loses the connections that are open, without a word; new ones work."""
    fleet.proxy.forget()
    yield


@contextmanager
def far(fleet: Fleet) -> Iterator[None]:
    """It is 50 ms away, and restarted there."""
    fleet.proxy.delay_s = 0.025
    fleet.server.stop()
    yield
    fleet.server.start()


OUTAGES: dict[str, Outage] = {
    found.__name__: found
    for found in (stopped, frozen, full, read_only, read_only_from_now, read_only_server, cut, forgotten, far)
}


@dataclass
class Verdict:
    """What an outage was like: seconds until each process served again, beyond those that it takes anyway.

    `ready_meanwhile` is the status of /ready at the end of the outage.
    """

    back_s: dict[str, float]
    answers: Counter[str]
    slowest_s: dict[str, float]
    lost: list[str]
    dead: list[str]
    ready_meanwhile: dict[str, int]


def endure(fleet: Fleet, outage: Outage, seconds: float, per_second: float) -> Verdict:
    """Have an outage under load; return how it went, and how long each process took to serve after it."""
    load = Load(fleet, per_second)
    with load.running():
        usual = back_of_all(fleet)
        with outage(fleet):
            time.sleep(seconds - READY_S)  # the length of the outage, not a wait for something
            with ThreadPoolExecutor() as threads:
                asked = {name: threads.submit(httpx.get, f"{fleet.url(name)}/ready", timeout=30) for name in PROCESSES}
            ready = {name: answer.result().status_code for name, answer in asked.items()}
        back = back_of_all(fleet)
    fleet.proxy.delay_s = 0
    dead = [name for name, process in fleet.running.items() if process.popen.poll() is not None]
    back = {name: max(0.0, seconds - usual[name]) for name, seconds in back.items()}
    return Verdict(back, load.answers, load.slowest_s, load.lost(), dead, ready)
