"""What a request, a job, an event and a sign-in cost, and whether `app capacity` predicts two loads from that.

Rates are paced, far below the limits, and idle processes are subtracted. `python -m benchmarks.capacity [seconds]`: two
minutes with 8 seconds a step. It prints the constants as `app/kernel/sizing.py` has them.
"""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import httpx
import psutil
import psycopg
import uvloop

from app.kernel.db.postgres import database
from app.kernel.process import Process
from app.kernel.queue import Task
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport.postgres import PostgresEvents
from app.kernel.sizing import Constants, Load, cpu_s, wal_bytes
from app.processes import load_settings
from benchmarks.measure import Table, free_port, postgres, project, scratch, wait_ready
from tests.conftest import SUPERUSER, PostgresServer
from tests.support.project import ROOT, add_feature

DECLARED = '''
NOTHING = Task[None]("platform.nothing", queue="bench")


@dataclass(frozen=True, slots=True)
class Happened:
    """Something happened."""

    event_type: ClassVar[str] = "platform.happened"
    number: int
'''
FEATURE = f'''
"""Does nothing."""

from dataclasses import dataclass
from typing import ClassVar

from app.kernel.actions import subscriber, task
from app.kernel.queue import Task

{DECLARED}

@dataclass(frozen=True, slots=True)
class Nothing:
    """Do nothing."""

    @task(NOTHING)
    async def nothing(self) -> None:
        """Do nothing. Safe to repeat."""

    @subscriber("platform.watch_it", Happened, queue="bench")
    async def watch(self, event: Happened) -> None:
        """Do nothing. Safe to repeat."""
'''
NOTHING = Task[None]("platform.nothing", queue="bench")
TICK_S = 0.02


@dataclass(frozen=True, slots=True)
class Happened:
    """Something happened."""

    event_type: ClassVar[str] = "platform.happened"
    number: int


@dataclass(frozen=True, slots=True)
class Used:
    """CPU seconds a second of API, consumer and PostgreSQL, and bytes of WAL a second."""

    api: float
    consumer: float
    postgres: float
    wal: float

    def __sub__(self, idle: "Used") -> "Used":
        return Used(*(max(a - b, 0.0) for a, b in zip(self._all(), idle._all(), strict=True)))

    def _all(self) -> tuple[float, ...]:
        return self.api, self.consumer, self.postgres, self.wal


@dataclass
class Bench:
    """Our processes, and what they use while something happens."""

    server: PostgresServer
    api: int
    consumer: int
    port: int
    token: str
    seconds: float
    reached: tuple[float, float, float] = (0, 0, 0)

    def query(self, sql: str) -> float:
        with psycopg.connect(self.server.conninfo(), autocommit=True) as connection:
            row = connection.execute(sql.encode()).fetchone()
            return float(row[0]) if row else 0.0

    def _now(self) -> Used:
        wal = self.query("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
        root = psutil.Process(self.server.postmaster())
        server = sum(root.cpu_times()[:4])  # with those of its sessions that have ended
        for each in root.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                server += sum(each.cpu_times()[:2])
        return Used(*(sum(psutil.Process(pid).cpu_times()[:2]) for pid in (self.api, self.consumer)), server, wal)

    def used(self, requests: float, jobs: float, events: float, *, together: bool = False) -> Used:
        """Return what a load uses. `reached` are the rates that were reached."""
        before, began = self._now(), time.monotonic()
        counts = uvloop.run(self._load(requests, jobs, events, together))
        while self.query("SELECT count(*) FROM kernel.jobs WHERE queue = 'bench'"):
            time.sleep(0.05)
        after, took_s = self._now(), time.monotonic() - began
        self.reached = (counts[0] / took_s, counts[1] / took_s, counts[2] / took_s)
        return Used(*((b - a) / took_s for a, b in zip(before._all(), after._all(), strict=True)))

    async def _load(self, requests: float, jobs: float, events: float, together: bool) -> list[int]:
        counts = [0, 0, 0]
        async with Process("bench", load_settings(), ROOT).opened() as p:
            db, queue = await p.use(database), Queue(PostgresEvents())

            async def paced(at: int, rate: float, work: Callable[[int], Awaitable[object]]) -> None:
                began = time.monotonic()
                while (since := time.monotonic() - began) < self.seconds:
                    await asyncio.sleep(0.1 if together else TICK_S)
                    if (due := round(rate * since) - counts[at]) > 0:
                        await work(due)
                        counts[at] += due

            async def enqueue(count: int) -> None:
                if together:
                    async with db.begin() as tx:
                        for _ in range(count):
                            await queue.enqueue(tx, NOTHING)
                    return
                for _ in range(count):  # each in a transaction of its own, as an action does
                    await queue.enqueue(db, NOTHING)

            async def publish(count: int) -> None:
                for number in range(count):
                    await queue.publish(db, Happened(number))

            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)

            async def ask(count: int) -> None:
                nonlocal reader, writer
                for _ in range(count):
                    writer.write(
                        f"GET /auth/v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.token}\r\n\r\n".encode()
                    )
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200 "), head
                    await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
                    if b"connection: close" in head.lower():
                        writer.close()
                        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)

            try:
                await asyncio.gather(paced(0, requests, ask), paced(1, jobs, enqueue), paced(2, events, publish))
            finally:
                writer.close()
        return counts


def size_of(bench: Bench, table: str) -> float:
    """Return the bytes of a table with its partitions and indexes."""
    parts = f"(SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('{table}') WHERE isleaf)"
    return bench.query(f"SELECT coalesce({parts}, pg_total_relation_size('{table}'))")


def rows_of(bench: Bench, table: str) -> float:
    return bench.query(f"SELECT count(*) FROM {table}")


def sessions(bench: Bench, count: int) -> tuple[float, float, float]:
    """Store sessions and audit entries as sign-ins do; return the bytes of each, and of their WAL."""
    before = [size_of(bench, "auth.sessions"), size_of(bench, "kernel.audit")]
    wal = bench.query("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
    with psycopg.connect(bench.server.conninfo(), autocommit=True) as connection:
        for _ in range(count // 100):
            connection.execute(
                "INSERT INTO auth.sessions (id, actor_id, idle_expires_at, expires_at, address, user_agent)"
                " SELECT kernel.uuid7(), (SELECT id FROM auth.actors LIMIT 1), now() + interval '7 days',"
                " now() + interval '30 days', '192.0.2.1', %s FROM generate_series(1, 100)",
                (agent,),
            )
            connection.execute(
                "INSERT INTO kernel.audit (id, action, outcome, actor_id, session_id, target, address, user_agent,"
                " request_id, trace_id) SELECT kernel.uuid7(), 'auth.login', 'done', gen_random_uuid(),"
                " gen_random_uuid(), gen_random_uuid()::text, '192.0.2.1', %s, gen_random_uuid()::text,"
                " md5(n::text) FROM generate_series(1, 100) n",
                (agent,),
            )
    after = [size_of(bench, "auth.sessions"), size_of(bench, "kernel.audit")]
    wal = bench.query("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn") - wal
    return (after[0] - before[0]) / count, (after[1] - before[1]) / count, wal / count


def constants(bench: Bench, idle: Used) -> Constants:
    """Measure what one of each costs."""
    of_requests = bench.used(200, 0, 0) - idle
    requests = bench.reached[0]
    before = size_of(bench, "kernel.finished_jobs"), rows_of(bench, "kernel.finished_jobs")
    of_jobs = bench.used(0, 200, 0) - idle
    jobs = bench.reached[1]
    stored = rows_of(bench, "kernel.finished_jobs") - before[1]
    job_bytes = (size_of(bench, "kernel.finished_jobs") - before[0]) / stored
    job_s, job_postgres_s, job_wal = of_jobs.consumer / jobs, of_jobs.postgres / jobs, of_jobs.wal / jobs
    of_batches = bench.used(0, 400, 0, together=True) - idle
    batched = bench.reached[1]
    before = size_of(bench, "kernel.events"), rows_of(bench, "kernel.events")
    of_events = bench.used(0, 0, 200) - idle
    events = bench.reached[2]
    event_bytes = (size_of(bench, "kernel.events") - before[0]) / (rows_of(bench, "kernel.events") - before[1])
    session_bytes, audit_bytes, sign_in_wal = sessions(bench, 20_000)
    return Constants(
        request_s=of_requests.api / requests,
        request_postgres_s=of_requests.postgres / requests,
        job_s=job_s,
        job_postgres_s=job_postgres_s,
        batched_job_s=of_batches.consumer / batched,
        batched_job_postgres_s=of_batches.postgres / batched,
        job_bytes=job_bytes,
        job_wal_bytes=job_wal,
        event_postgres_s=max(of_events.postgres / events - job_postgres_s, 0),  # beyond the job of its subscriber
        event_bytes=event_bytes,
        event_wal_bytes=max(of_events.wal / events - job_wal, 0),
        session_bytes=session_bytes,
        audit_bytes=audit_bytes,
        sign_in_wal_bytes=sign_in_wal,
    )


def main() -> None:
    seconds = float(sys.argv[1]) if sys.argv[1:] else 8.0
    with scratch() as folder, postgres(folder / "pg") as server, project(folder, server) as of:
        add_feature(of, "nothing:Nothing", FEATURE)
        of.env |= {"AUTH_ACCESS_TOKEN_TTL": "1d", "AUTH_MASTER_SECRET": secrets.token_urlsafe(48)}
        os.environ |= {key: value for key, value in of.env.items() if key.startswith(("POSTGRES_", "AUTH_"))}
        os.environ["APP_ENV"] = "test"
        port = free_port()
        api = of.start("run-auth-http", "--port", str(port))
        consumer_port = free_port()
        consumer = of.start("run-event-consumer", "--queue", "bench", "--port", str(consumer_port))
        wait_ready(api.popen, port)
        wait_ready(consumer.popen, consumer_port)
        name, password = SUPERUSER
        of.app("auth", "create-superuser", "--username", name, "--password-stdin", stdin=password)
        signed_in = httpx.post(
            f"http://127.0.0.1:{port}/auth/v1/login", json={"username": name, "password": password}, timeout=30
        )
        token = signed_in.raise_for_status().json()["session"]["access_token"]
        bench = Bench(server, api.pid, consumer.pid, port, token, seconds)
        bench.used(100, 100, 50)  # warm
        idle = bench.used(0, 0, 0)
        found = constants(bench, idle)
        table = Table("Predicted by `app capacity` / measured")
        for requests, jobs, events in ((100, 100, 50), (300, 300, 100)):
            used = bench.used(requests, jobs, events) - idle
            load = Load(*bench.reached, subscribers=1, sessions=0, sign_ins_s=0, job_time_s=0)
            title = f"{requests} requests, {jobs} jobs, {events} events a second"
            parts = zip(("API", "consumer", "PostgreSQL"), cpu_s(load, found), used._all(), strict=False)
            for name, predicted, measured in parts:
                table.add(f"{title}: cores of {name}", measured, "")
                table.add(f"{title}: predicted / measured", predicted / measured, "x", least=0.5)
            table.add(f"{title}: WAL, kB/s", used.wal / 1e3, "")
            table.add(f"{title}: predicted / measured", wal_bytes(load, of=found) / used.wal, "x", least=0.5)
        table.show()
    print("\nMEASURED = Constants(")
    for name in found.__slots__:
        value = getattr(found, name)
        print(f"    {name}={f'{value * 1e6:.0f}e-6' if name.endswith('_s') else f'{value:.0f}'},")
    print(")")


if __name__ == "__main__":
    main()
