"""Two workers against one: requests and jobs a second, against what the cores of this machine allow.

Clients and PostgreSQL share the cores with what is measured, so their CPU time is measured too: it bounds the ratio.
The clients are pinned to the last core. `python -m benchmarks.workers [rounds [seconds]]`
"""

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import jwt
import psutil
import psycopg
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.kernel.process import Process
from app.kernel.queue import Task
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport.postgres import PostgresEvents
from app.processes import load_settings
from benchmarks.http import SECRET, log_in
from benchmarks.measure import Broken, Table, free_port, postgres, project, scratch, stop, wait_ready
from benchmarks.peer_fastapi import SCHEMA
from tests.conftest import PostgresServer
from tests.support.project import ROOT, Project, add_feature

CONNECTIONS = 32
JOBS = 12_000
NOTHING = Task[None]("platform.nothing", queue="bench")
FEATURE = '''
"""Does nothing."""

from dataclasses import dataclass

from app.kernel.actions import task
from app.kernel.queue import Task

NOTHING = Task[None]("platform.nothing", queue="bench")


@dataclass(frozen=True, slots=True)
class Nothing:
    """Do nothing."""

    @task(NOTHING)
    async def nothing(self) -> None:
        """Do nothing. Safe to repeat."""
'''


@dataclass
class Measured:
    """What a round found: units a second, and CPU seconds of a unit."""

    per_s: float
    own_s: float
    postgres_s: float
    clients_s: float
    busiest: float
    """The share of the worker that has done the most."""

    def bound(self, workers: int) -> float:
        """Units a second if the cores did nothing else: the workers have one each, and all parts share all of them."""
        return min(workers / self.own_s, (os.cpu_count() or 1) / (self.own_s + self.postgres_s + self.clients_s))


def clients(port: int, token: str, seconds: float) -> None:
    """Send requests over kept connections; print how many were answered, and the CPU time that it took."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    lines = ["GET /auth/v1/me HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}", "\r\n"]
    request = "\r\n".join(lines).encode()
    answered = 0

    async def client(until: float) -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
            if not head.startswith(b"HTTP/1.1 200 "):
                raise Broken(head.decode())
            answered += 1
            if b"connection: close" in head.lower():
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    async def run() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(client(until) for _ in range(CONNECTIONS)))

    uvloop.run(run())
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([answered, used.ru_utime + used.ru_stime]))


def tree_s(pid: int) -> dict[int, float]:
    """Return the CPU seconds of a process and of its descendants."""
    root = psutil.Process(pid)
    return {each.pid: sum(each.cpu_times()[:2]) for each in (root, *root.children(recursive=True))}


def used_s(pid: int, before: dict[int, float]) -> dict[int, float]:
    return {key: seconds - before.get(key, 0.0) for key, seconds in tree_s(pid).items()}


def requests_round(pid: int, port: int, token: str, postmaster: int, seconds: float) -> Measured:
    before, database = tree_s(pid), tree_s(postmaster)
    command = [sys.executable, "-m", "benchmarks.workers", "clients", str(port), token, str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise Broken(done.stderr)
    answered, clients_s = json.loads(done.stdout)
    own = used_s(pid, before)
    busiest = max(own.values()) / (sum(own.values()) or 1)
    return Measured(
        answered / seconds,
        sum(own.values()) / answered,
        sum(used_s(postmaster, database).values()) / answered,
        clients_s / answered,
        busiest,
    )


def jobs_round(of: Project, database: PostgresServer, pid: int) -> Measured:
    """Let paused workers do jobs that are there already."""
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:

        def left() -> int:
            row = connection.execute("SELECT count(*) FROM kernel.jobs WHERE queue = 'bench'").fetchone()
            return int(row[0]) if row else 0

        def command(*arguments: str) -> None:
            if (done := of.app(*arguments)).returncode:
                raise Broken(done.stderr)

        command("queues", "pause", "bench")
        uvloop.run(fill())
        postmaster = database.postmaster()
        command("queues", "resume", "bench")
        while left() > JOBS * 0.9:
            time.sleep(0.005)
        first, started = left(), time.perf_counter()
        before, of_database = tree_s(pid), tree_s(postmaster)
        while (last := left()) > JOBS * 0.1:
            time.sleep(0.02)
        done, took_s = first - last, time.perf_counter() - started
        own = used_s(pid, before)
        while left():
            time.sleep(0.05)
    used = sum(own.values())
    per_job = sum(used_s(postmaster, of_database).values()) / done
    return Measured(done / took_s, used / done, per_job, 0.0, max(own.values()) / (used or 1))


async def fill() -> None:
    from app.kernel.db.postgres import database

    async with Process("bench", load_settings(), ROOT).opened() as opened:
        await Queue(PostgresEvents()).enqueue_many(await opened.use(database), NOTHING, (None for _ in range(JOBS)))


@contextmanager
def peer(port: int, workers: int, env: dict[str, str]) -> Generator[int]:
    """uvicorn with its own supervisor."""
    command = [sys.executable, "-m", "uvicorn", "benchmarks.peer_fastapi:asynchronous", "--factory", "--loop=uvloop"]
    command += ["--http=httptools", "--no-access-log", f"--port={port}", f"--workers={workers}", "--log-level=warning"]
    popen = subprocess.Popen(command, cwd=ROOT, env=os.environ | env)
    try:
        wait_ready(popen, port, "/openapi.json")
        yield popen.pid
    finally:
        stop(popen)


def peer_environment(of: Project, database: PostgresServer, token: str) -> tuple[dict[str, str], str]:
    """Return the environment of the peer, and a token for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    claims = jwt.decode(token, options={"verify_signature": False}) | {"iss": "peer", "exp": time.time() + 86400}
    dsn = f"postgresql+psycopg://{database.user}@/app?host={database.host}&port={database.port}"
    env = {"PEER_DSN": dsn, "PEER_KEY": public, "PEER_LOG": str(of.scratch / "peer.log")}
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        connection.execute(SCHEMA)
    return env, jwt.encode(claims, key, algorithm="ES256")


def compared(table: Table, what: str, one: list[Measured], two: list[Measured], least: float | None) -> None:
    """Add the figures of one and two workers."""

    def of(found: list[Measured], figure: Callable[[Measured], Any]) -> float:
        return median(figure(each) for each in found)

    ratio = of(two, lambda m: m.per_s) / of(one, lambda m: m.per_s)
    bound = of(two, lambda m: m.bound(2)) / of(one, lambda m: m.bound(1))
    cpu = of(two, lambda m: m.own_s) / of(one, lambda m: m.own_s)
    table.add(f"{what}: one worker", of(one, lambda m: m.per_s), "/s")
    table.add(f"{what}: two workers", of(two, lambda m: m.per_s), "/s")
    table.add("two workers / one, as measured", ratio, "x")
    table.add("what the CPU times leave room for on these cores", bound, "x")
    table.add("two workers / one, if clients and PostgreSQL had cores of their own", 2 / cpu, "x", least=least)
    for name, figure in (("workers", "own_s"), ("PostgreSQL", "postgres_s"), ("clients", "clients_s")):
        table.add(f"CPU of {name} for one, with two workers", of(two, lambda m, f=figure: getattr(m, f)) * 1e6, " us")
    table.add("CPU of workers, two / one", cpu, "x")
    table.add("share of the busier worker", of(two, lambda m: m.busiest), "x", most=0.65)


def main() -> None:
    given = [float(text) for text in sys.argv[1:]]
    rounds, seconds = given + [5, 4][len(given) :]
    table = Table(f"One and two workers, medians of {rounds:g} interleaved rounds")
    with scratch() as folder, postgres(folder / "pg") as database, project(folder, database) as of:
        add_feature(of, "nothing:Nothing", FEATURE)
        of.env |= {"AUTH_ACCESS_TOKEN_TTL": "1d", "AUTH_MASTER_SECRET": SECRET}
        os.environ |= {key: value for key, value in of.env.items() if key.startswith(("POSTGRES_", "AUTH_"))}
        os.environ["APP_ENV"] = "test"
        served: dict[int, tuple[int, int]] = {}
        consuming: dict[int, int] = {}
        token = ""
        for count in (1, 2):
            port = free_port()
            started = of.start("run-auth-http", "--port", str(port), "--workers", str(count))
            wait_ready(started.popen, port)
            token = token or log_in(of, port)["access_token"]
            served[count] = (started.pid, port)
        found: dict[tuple[str, int], list[Measured]] = {}
        postmaster = database.postmaster()
        for number in range(int(rounds)):
            for count in (1, 2) if number % 2 else (2, 1):
                measured = requests_round(*served[count], token, postmaster, seconds)
                found.setdefault(("ours", count), []).append(measured)
        for started in of.running:
            started.stop()
        env, peer_token = peer_environment(of, database, token)
        for number in range(int(rounds)):
            for count in (1, 2) if number % 2 else (2, 1):
                port = free_port()
                with peer(port, count, env) as pid:
                    requests_round(pid, port, peer_token, postmaster, 1)
                    measured = requests_round(pid, port, peer_token, postmaster, seconds)
                    found.setdefault(("peer", count), []).append(measured)
        for number in range(int(rounds)):
            for count in (1, 2) if number % 2 else (2, 1):
                port = free_port()
                started = of.start(
                    "run-event-consumer", "--queue", "bench", "--port", str(port), "--workers", str(count)
                )
                wait_ready(started.popen, port)
                consuming[count] = started.pid
                found.setdefault(("jobs", count), []).append(jobs_round(of, database, started.pid))
                started.stop()
    compared(table, "`GET /auth/v1/me`", found["ours", 1], found["ours", 2], 1.7)
    compared(table, "the same with FastAPI and uvicorn --workers", found["peer", 1], found["peer", 2], None)
    compared(table, "jobs that do nothing", found["jobs", 1], found["jobs", 2], 1.7)
    table.show()


if __name__ == "__main__":
    if sys.argv[1:2] == ["clients"]:
        clients(int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
    else:
        main()
