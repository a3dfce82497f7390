"""The queue against the raw limit of PostgreSQL and against its peers.

`python -m benchmarks.queue [quick] [figure...]`: without `quick` it takes minutes and writes docs/benchmarks.md.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from benchmarks.measure import PYTHON, Broken, Table, free_port, interleaved, postgres, scratch, stop
from benchmarks.report import Report
from tests.conftest import PostgresServer
from tests.support.project import ROOT

OURS, BLIND, RAW = "ours", "ours without telemetry", "raw psycopg"
PGQUEUER, PROCRASTINATE, CELERY = "PgQueuer on asyncpg", "Procrastinate", "Celery + Redis"
FIGURES = ("throughput", "telemetry", "enqueue", "publishers", "latency", "turns", "snapshot", "fetch", "events")
POLL_S = 0.005


@dataclass(frozen=True)
class Sizes:
    rounds: int
    jobs: Mapping[str, int]
    enqueued: tuple[int, int, int]
    trickled: int
    held: int
    fetches: int
    rows: int
    events: int
    published: int
    turns: int


FULL = Sizes(
    3,
    {OURS: 60_000, BLIND: 60_000, RAW: 60_000, PGQUEUER: 40_000, PROCRASTINATE: 1_500, CELERY: 5_000},
    (2_000, 300, 50_000),
    1_000,
    140_000,
    1_000,
    1_000_000,
    10_000,
    4_000,
    2_000,
)
QUICK = Sizes(
    1,
    {OURS: 20_000, BLIND: 20_000, RAW: 20_000, PGQUEUER: 15_000, PROCRASTINATE: 500, CELERY: 1_000},
    (200, 50, 10_000),
    200,
    40_000,
    100,
    50_000,
    1_000,
    400,
    600,
)


@dataclass(frozen=True)
class Subject:
    """Something to measure: how it is started, and what says that jobs are left."""

    name: str
    worker: Sequence[str]
    client: Sequence[str]
    env: Mapping[str, str]
    left: str = ""
    conninfo: str = ""
    root: Path = ROOT

    def fill(self, count: int) -> None:
        """Enqueue, and leave the server at rest."""
        finish(self.start([*self.client, "fill", str(count)], "fill"))
        if self.conninfo:
            with psycopg.connect(self.conninfo, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
                connection.execute("CHECKPOINT")

    def start(self, command: Sequence[str], what: str) -> "Started":
        """Start a process of it."""
        output = Path(self.env["BENCH_SCRATCH"], f"{self.name}-{what}-{time.monotonic_ns()}".replace(" ", "-"))
        with output.open("wb") as out, output.with_suffix(".err").open("wb") as err:
            popen = subprocess.Popen(
                command, env=self.env, cwd=self.root, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        return Started(popen, output)

    @contextmanager
    def working(self, count: int, *more: str) -> Generator["Started"]:
        """Run a worker meanwhile."""
        worker = self.start([*self.worker, str(count), *more], "work")
        try:
            worker.wait_for("ready")
            yield worker
        finally:
            stop(worker.popen)

    def per_s(self, count: int) -> float:
        """Work off a full queue; return jobs a second, from the first that is handled until none is left."""
        self.fill(count)
        with self.working(count) as worker:
            found = worker.found()
            done = self.wait_until_empty() if self.left else found["last"]
        return count / (done - found["first"])

    def wait_until_empty(self) -> float:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            while connection.execute(self.left).fetchone() is not None:
                time.sleep(POLL_S)
        return time.monotonic()

    def late_s(self, count: int, per_s: int) -> dict[str, list[float]]:
        """Enqueue at an even rate; return how long each job took to be handled."""
        with self.working(count) as worker:
            time.sleep(1)
            finish(self.start([*self.client, "trickle", str(count), str(per_s)], "trickle"))
            found = worker.found()
        return {what: found[what][count // 20 :] for what in ("late_s", "notified_s") if what in found}


@dataclass(frozen=True)
class Started:
    """A process, and what it prints."""

    popen: "subprocess.Popen[bytes]"
    output: Path

    def wait_for(self, word: str, patience_s: float = 180) -> str:
        """Return the line that begins so. Raises Broken when the process ends without, or takes too long."""
        deadline = time.monotonic() + patience_s
        while True:
            ended = self.popen.poll() is not None
            for line in self.output.read_text().splitlines(keepends=True):
                if line.startswith(word) and line.endswith("\n"):
                    return line
            if ended or time.monotonic() > deadline:
                said = self.output.with_suffix(".err").read_text()[-2000:]
                raise Broken(f"{self.popen.args} said no {word!r}; exit status {self.popen.poll()}\n{said}")
            time.sleep(POLL_S)

    def found(self) -> dict[str, Any]:
        """Return what it measured."""
        return json.loads(self.wait_for("{"))


def finish(started: Started) -> Started:
    """Wait for the end of a process that does one thing."""
    if started.popen.wait(180) != 0:
        raise Broken(f"{started.popen.args}\n{started.output.with_suffix('.err').read_text()[-2000:]}")
    return started


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Benchmark:
    """The subjects on one server, and what was found."""

    def __init__(
        self, folder: Path, server: PostgresServer, redis: int, sizes: Sizes, table: Table, *, peers: bool
    ) -> None:
        self.server = server
        self.sizes = sizes
        self.table = table
        self.report = Report()
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._base = kept | {"BENCH_SCRATCH": str(folder)}
        self._ours_env = self._base | {
            "APP_ENV": "test",
            "POSTGRES_HOST": server.host,
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_USER": server.user,
            "LOGGER_OUTPUT": str(folder / "log"),
            "QUEUE_CONCURRENCY": "100",
        }
        (folder / "log").touch()
        self.ours = self._ours("app")
        self.raw = self._peer(RAW, "raw", "SELECT FROM jobs LIMIT 1")
        self.peers = (
            [
                self._peer(PGQUEUER, "pgqueuer", "SELECT FROM pgqueuer LIMIT 1"),
                self._peer(PROCRASTINATE, "procrastinate", "SELECT FROM procrastinate_jobs LIMIT 1"),
            ]
            if peers
            else []
        )
        if redis:
            self.peers.append(self._peer(CELERY, "celery", "", redis))

    def _ours(self, db: str) -> Subject:
        env = self._ours_env | {"POSTGRES_DB": db}
        worker, client = ([PYTHON, "-m", f"benchmarks.queue_{what}"] for what in ("worker", "client"))
        return Subject(OURS, worker, client, env, "SELECT FROM kernel.jobs LIMIT 1", self.server.conninfo(db))

    def _peer(self, name: str, short: str, left: str, redis: int = 0) -> Subject:
        command = [sys.executable, "-m", f"benchmarks.peer_{short}"]
        conninfo = self.server.conninfo(f"peer_{short}")
        parts = f"{self.server.host} {self.server.port} {self.server.user} peer_{short}"
        env = {"PEER_DSN": conninfo, "PEER_PARTS": parts, "PEER_REDIS": f"redis://127.0.0.1:{redis}/0"}
        subject = Subject(name, [*command, "work"], command, self._base | env, left, conninfo if left else "")
        if left:
            self.admin(f"CREATE DATABASE peer_{short}")
            if name != RAW:
                finish(subject.start([*command, "install"], "install"))
        return subject

    def admin(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements as the administrator; return the row of each that has one."""
        with psycopg.connect(self.server.conninfo("postgres"), autocommit=True) as connection:
            done = [connection.execute(statement) for statement in statements]  # type: ignore[call-overload]
            return [cursor.fetchone() or () for cursor in done if cursor.description]

    def ask(self, subject: Subject, *arguments: object) -> dict[str, Any]:
        """Return what a client process of the subject measured."""
        command = [*subject.client, *(str(argument) for argument in arguments)]
        return finish(subject.start(command, str(arguments[0]))).found()

    def empty(self, subject: Subject) -> None:
        """Delete all jobs."""
        with psycopg.connect(subject.conninfo, autocommit=True) as connection:
            connection.execute("TRUNCATE kernel.jobs" if subject.name == OURS else "TRUNCATE jobs")
            connection.execute("CHECKPOINT")

    def rates(self, subjects: Sequence[Subject], rounds: int) -> dict[str, list[float]]:
        """Let them work off full queues in turns; return the jobs a second of each, by round."""
        per_s: dict[str, list[float]] = {}

        def noting(subject: Subject) -> Callable[[], float]:
            def measure() -> float:
                found = subject.per_s(self.sizes.jobs[subject.name])
                per_s.setdefault(subject.name, []).append(found)
                print(f"  {subject.name}: {found:,.0f}/s, load {os.getloadavg()[0]:.1f}", flush=True)
                return found

            return measure

        interleaved({subject.name: noting(subject) for subject in subjects}, rounds)
        return per_s

    # the figures

    def throughput(self) -> None:
        """How many jobs a second one worker handles."""
        per_s = self.rates([self.ours, self.raw, *self.peers], self.sizes.rounds)
        medians = {name: median(values) for name, values in per_s.items()}

        def ratio(name: str) -> float:
            return median(ours / other for ours, other in zip(per_s[OURS], per_s[name], strict=True))

        self.table.add("no-op jobs, one worker process", medians[OURS], "/s", least=12_000)
        self.table.add("raw psycopg, lease and delete by 100", medians[RAW], "/s")
        self.table.add("ours / raw psycopg", 100 * ratio(RAW), "%", least=40)
        for name, least in ((PGQUEUER, 1), (PROCRASTINATE, 25), (CELERY, 15)):
            if name in medians:
                self.table.add(name, medians[name], "/s")
                self.table.add(f"ours / {name}", ratio(name), "x", least=least)
        self.report.throughput = medians

    def telemetry(self) -> None:
        """What log lines, traces and metrics take from the rate."""
        blind = Subject(**{**vars(self.ours), "name": BLIND, "env": {**self.ours.env, "BENCH_BLIND": "1"}})
        per_s = self.rates([self.ours, blind], 2 * self.sizes.rounds + 1)
        ratios = [ours / without for ours, without in zip(per_s[OURS], per_s[BLIND], strict=True)]
        self.table.add("rate with telemetry / without", 100 * median(ratios), "%", least=85)

    def enqueue(self) -> None:
        """The three ways in."""
        found: dict[str, dict[str, list[float]]] = {OURS: {}, RAW: {}}

        def noting(subject: Subject) -> Callable[[], float]:
            def measure() -> float:
                self.ask(subject, "enqueue", 1, 1, 1_000)  # makes the tables
                self.empty(subject)
                for way, per_s in self.ask(subject, "enqueue", *self.sizes.enqueued).items():
                    found[subject.name].setdefault(way, []).append(per_s)
                self.empty(subject)
                return 0

            return measure

        interleaved({s.name: noting(s) for s in (self.ours, self.raw)}, self.sizes.rounds)
        for way, least in (("one", 1_500), ("batches", 25_000), ("copied", 60_000)):
            words = {"one": "one by one", "batches": "batches of 100", "copied": "bulk COPY"}[way]
            ratios = [ours / raw for ours, raw in zip(found[OURS][way], found[RAW][way], strict=True)]
            self.table.add(f"enqueue, {words}", median(found[OURS][way]), "/s", least=least)
            self.table.add(f"enqueue, {words}: ours / raw psycopg", 100 * median(ratios), "%")

    def latency(self) -> None:
        """From the call that enqueues until the handler runs, at a hundred a second."""
        listening = Subject(**{**vars(self.raw), "worker": [*self.raw.client, "listen"]})
        self.empty_raw()
        found: dict[str, dict[str, list[float]]] = {}

        def note(name: str, late_s: list[float]) -> None:
            for what, share in (("p50", 0.5), ("p99", 0.99)):
                found.setdefault(name, {}).setdefault(what, []).append(1000 * percentile(late_s, share))

        def noting(subject: Subject) -> Callable[[], float]:
            def measure() -> float:
                late_s = subject.late_s(self.sizes.trickled, 100)
                note(subject.name, late_s["late_s"])
                if "notified_s" in late_s:
                    note("NOTIFY", late_s["notified_s"])
                print(f"  {subject.name}: p50 {found[subject.name]['p50'][-1]:.1f} ms,", end=" ", flush=True)
                print(f"p99 {found[subject.name]['p99'][-1]:.1f} ms, load {os.getloadavg()[0]:.1f}", flush=True)
                return 0

            return measure

        interleaved({s.name: noting(s) for s in (self.ours, listening, *self.peers)}, self.sizes.rounds)
        for what, most in (("p50", 3), ("p99", 10)):
            self.table.add(f"enqueue to handled at 100/s, {what}", median(found[OURS][what]), " ms", most=most)
            self.table.add(f"raw NOTIFY, {what}", median(found["NOTIFY"][what]), " ms")
            self.table.add(f"raw NOTIFY and lease, {what}", median(found[RAW][what]), " ms")
            for name in [RAW, *(peer.name for peer in self.peers)]:
                if name != RAW:
                    self.table.add(f"{name}, {what}", median(found[name][what]), " ms")
                ratios = [ours / other for ours, other in zip(found[OURS][what], found[name][what], strict=True)]
                words = "raw NOTIFY and lease" if name == RAW else name
                self.table.add(f"{what}: ours / {words}", median(ratios), "x")
        self.report.latency = {name: {w: median(v) for w, v in values.items()} for name, values in found.items()}

    def empty_raw(self) -> None:
        self.raw.fill(0)
        self.empty(self.raw)

    def snapshot(self) -> None:
        """A transaction that holds a snapshot keeps the rows of finished jobs from being cleaned away."""
        curves: dict[str, list[list[tuple[float, float]]]] = {}

        def noting(subject: Subject, count: int) -> Callable[[], float]:
            def measure() -> float:
                subject.fill(count)
                with psycopg.connect(subject.conninfo) as holding:
                    holding.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    holding.execute("SELECT pg_current_snapshot()")
                    with subject.working(count) as worker:
                        found = worker.found()
                        if subject.left:
                            subject.wait_until_empty()
                # 5,000 jobs a point, without the first thousand, which the start of the process is in
                marks = found["marks"][::5]
                points = [
                    (5_000 * number + 3_500, 5_000 / (after - before))
                    for number, (before, after) in enumerate(pairwise(marks))
                ]
                curves.setdefault(subject.name, []).append(points)
                start, end = rates(points)
                print(f"  {subject.name}: {start:,.0f}/s, then {end:,.0f}/s, load {os.getloadavg()[0]:.1f}", flush=True)
                return end / start

            return measure

        def rates(points: list[tuple[float, float]]) -> tuple[float, float]:
            last = [per_s for jobs, per_s in points if jobs >= min(100_000, self.sizes.held * 0.7)]
            return median(per_s for _, per_s in points[:3]), median(last)

        held = self.sizes.held
        subjects = {s.name: noting(s, held) for s in (self.ours, self.raw, self.peers[0])}
        kept = interleaved(subjects, max(1, self.sizes.rounds // 2))
        self.table.add("rate after 100,000 jobs under a held snapshot", 100 * kept[OURS], "%", least=50)
        self.table.add("the same, raw psycopg", 100 * kept[RAW], "%")
        self.table.add(f"the same, {PGQUEUER}", 100 * kept[PGQUEUER], "%")
        self.report.snapshot = {
            name: [(jobs, median(c[i][1] for c in runs)) for i, (jobs, _) in enumerate(min(runs, key=len))]
            for name, runs in curves.items()
        }

    def fetch(self) -> None:
        """Fetching a hundred jobs beside a million that are finished, or scheduled."""
        self.ask(self.ours, "enqueue", 1, 1, 1_000)
        self.empty(self.ours)
        names = ["fetch_empty", "fetch_finished", "fetch_scheduled"]
        for name in names:
            self.admin(f"CREATE DATABASE {name} TEMPLATE app")
        rows = self.sizes.rows
        with psycopg.connect(self.server.conninfo(names[1]), autocommit=True) as connection:
            connection.execute(
                "INSERT INTO kernel.finished_jobs (id, queue, task, payload, outcome, attempt, created_at)"
                " SELECT kernel.uuid7(), 'default', 'bench.nothing', '{\"at\": 0}', 'done', 1, now()"
                " FROM generate_series(1, %s)",
                [rows],
            )
        with psycopg.connect(self.server.conninfo(names[2]), autocommit=True) as connection:
            connection.execute(
                "INSERT INTO kernel.jobs (id, queue, task, payload, state, run_at, rank, max_attempts, timeout_s)"
                " SELECT kernel.uuid7(), 'default', 'bench.nothing', '{\"at\": 0}', 'scheduled', due,"
                " kernel.job_rank(due, 0), 10, 300"
                " FROM generate_series(1, %s) i, LATERAL (SELECT now() + (3600 + i) * interval '1 second') t (due)",
                [rows],
            )
        for name in names:
            self._ours(name).fill(100 * (self.sizes.fetches + 30))
        found = self.ask(self.ours, "fetch", self.sizes.fetches, *names)["took_s"]
        words = ["empty tables", f"{rows:,} finished jobs", f"{rows:,} scheduled jobs"]
        p99 = [1000 * percentile(took_s, 0.99) for took_s in found]
        p50 = [1000 * percentile(took_s, 0.50) for took_s in found]
        for index, word in enumerate(words):
            self.table.add(f"fetch of 100, {word}, p50", p50[index], " ms")
            self.table.add(f"fetch of 100, {word}, p99", p99[index], " ms")
        for index in (1, 2):
            self.table.add(f"fetch p99, {words[index]} / empty", p99[index] / p99[0], "x", most=2)
        for name in names:
            self.admin(f"DROP DATABASE {name} WITH (FORCE)")

    def events(self) -> None:
        """Events published in batches and one by one, with five subscribers."""
        for batch, count, least in ((100, self.sizes.events, 8_000), (1, self.sizes.events // 10, None)):
            per_s: list[float] = []
            for _ in range(self.sizes.rounds):
                with self.ours.working(5 * count, "events") as worker:
                    time.sleep(1)
                    published = self.ask(self.ours, "publish", count, batch)
                    found = worker.found()
                    per_s.append(5 * count / (found["last"] - published["started"]))
                    self.ours.wait_until_empty()
                print(f"  events by {batch}: {per_s[-1]:,.0f}/s, load {os.getloadavg()[0]:.1f}", flush=True)
            words = "one by one" if batch == 1 else f"by {batch}"
            self.table.add(f"events published {words}, 5 subscribers: delivered", median(per_s), "/s", least=least)

    def publishers(self) -> None:
        """Transactions of one job or event each, of concurrent publishers, against those of one row."""
        for count in (1, 16):
            per_s: dict[str, list[float]] = {}
            for _ in range(self.sizes.rounds):
                for name, found in self.ask(self.ours, "publishers", count, self.sizes.published).items():
                    per_s.setdefault(name, []).extend(found)
                    print(f"  {count} at once, {name}: {median(found):,.0f}/s", flush=True)
                self.empty(self.ours)
            for name, words in (("row", "psycopg alone"), ("pooled", "our pool")):
                self.table.add(f"{count} transactions at once, a row, {words}", median(per_s[name]), "/s")
            for name in ("job", "event"):
                for other, words in (("row", "psycopg alone"), ("pooled", "our pool")):
                    ratios = [ours / bare for ours, bare in zip(per_s[name], per_s[other], strict=True)]
                    self.table.add(f"{count} at once: {name}s / rows, {words}", 100 * median(ratios), "%")
            self.table.add(f"{count} at once, a row without a transaction", median(per_s["row_alone"]), "/s")
            for name in ("job", "event"):
                for other, words in (
                    ("row_alone", "rows without one"),
                    ("row", "transactions of a row, psycopg alone"),
                ):
                    ratios = [ours / bare for ours, bare in zip(per_s[f"{name}_alone"], per_s[other], strict=True)]
                    self.table.add(f"{count} at once, {name}s without one / {words}", 100 * median(ratios), "%")

    def turns(self) -> None:
        """Time between the jobs of a group, and the rate of many groups, by two workers."""
        count = self.sizes.turns
        for mode in ("groups", "groups-tx"):
            for groups, jobs in ((1, count), (100, 5 * count)):
                gaps, per_s = self._turns(mode, groups, jobs)
                words = f"{groups} group{'s' if groups > 1 else ''}{', exactly once' if mode.endswith('tx') else ''}"
                self.table.add(f"{words}, two workers", per_s, "/s")
                for what, share in (("p50", 0.5), ("p99", 0.99)):
                    self.table.add(f"{words}: from one job to the next, {what}", 1000 * percentile(gaps, share), " ms")

    def _turns(self, mode: str, groups: int, jobs: int) -> tuple[list[float], float]:
        """Return the seconds between jobs of a group, and the jobs a second."""
        with self.ours.working(0, mode) as one, self.ours.working(0, mode) as other:
            time.sleep(1)
            finish(self.ours.start([*self.ours.client, "groups", str(groups), str(jobs)], "groups"))
            self.ours.wait_until_empty()
            lines = [line.split() for worker in (one, other) for line in worker.output.read_text().splitlines()]
        found = sorted((int(line[0]), float(line[1])) for line in lines if len(line) == 2)
        if len(found) != jobs:
            raise Broken(f"{len(found)} of {jobs} jobs ran")
        gaps = [after[1] - before[1] for before, after in pairwise(found) if before[0] == after[0]]
        moments = [moment for _, moment in found]
        per_s = jobs / (max(moments) - min(moments))
        print(f"  {mode}, {groups}: {per_s:,.0f}/s, {1000 * median(gaps):.1f} ms", flush=True)
        return gaps, per_s


@contextmanager
def redis(folder: Path) -> Generator[int]:
    """A Redis of our own that keeps nothing on disk; its port, or 0 when Redis is not installed."""
    port = free_port()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    try:
        popen = subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        print("redis-server is not installed: measuring without Celery")
        yield 0
        return
    try:
        yield port
    finally:
        stop(popen)


def main() -> None:
    quick = "quick" in sys.argv
    chosen = [name for name in FIGURES if name in sys.argv] or FIGURES
    sizes = QUICK if quick else FULL
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        server = stack.enter_context(postgres(folder / "pg"))
        peers = not {"throughput", "latency", "snapshot"}.isdisjoint(chosen)
        port = stack.enter_context(redis(folder)) if peers else 0
        table = Table(f"The queue, medians of {sizes.rounds} interleaved rounds")
        benchmark = Benchmark(folder, server, port, sizes, table, peers=peers)
        shown = ("server_version", "fsync", "synchronous_commit")
        settings = {name: benchmark.admin(f"SHOW {name}")[0][0] for name in shown}
        if settings["fsync"] != "on" or settings["synchronous_commit"] != "on":
            raise Broken(f"this would measure something else: {settings}")
        print(f"PostgreSQL: {settings}", flush=True)
        for name in chosen:
            print(f"{name}:", flush=True)
            getattr(benchmark, name)()
    table.show()
    if not quick and len(chosen) == len(FIGURES):
        packages = ("psycopg", "pgqueuer", "asyncpg", "procrastinate", "celery")
        versions = {name: version(name) for name in packages}
        said = subprocess.check_output(["redis-server", "--version"], text=True) if port else "v=none"
        versions["Redis"] = re.findall(r"v=(\S+)", said)[0]
        benchmark.report.write(table, {"PostgreSQL": settings["server_version"], **versions})


if __name__ == "__main__":
    main()
