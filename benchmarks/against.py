"""This tree against an older commit of itself, measured in turns: `GET /me`, jobs a second, start, memory, `--help`.

`python -m benchmarks.against COMMIT [rounds]`: each figure is the median of the ratios, now / before, of all rounds.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import psycopg

from benchmarks.http import Server, log_in
from benchmarks.measure import (
    PYTHON,
    Table,
    cpu_s,
    free_port,
    postgres,
    project,
    resident_mb,
    scratch,
    wait_ready,
    wall_s,
)
from benchmarks.queue import Subject
from benchmarks.startup import start, start_and_stop
from tests.conftest import PostgresServer
from tests.support.project import ROOT, Project

REQUESTS, JOBS = 2_000, 20_000
BEFORE, NOW = "before", "now"
Measure = Callable[[], float]


def extracted(commit: str, folder: Path) -> Path:
    """Return a folder with the tree of a commit."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
    return folder


class Tree:
    """One of the two trees, with a database of its own on the common server."""

    def __init__(self, name: str, root: Path, folder: Path, server: PostgresServer, stack: ExitStack) -> None:
        folder.mkdir()
        with psycopg.connect(server.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        self.project: Project = stack.enter_context(project(folder, server, root))
        self.project.env |= {"POSTGRES_DB": name, "AUTH_ACCESS_TOKEN_TTL": "1d"}
        self.project.app("migrate", "up")
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        env = kept | self.project.env | {"APP_ENV": "test", "BENCH_SCRATCH": str(folder), "QUEUE_CONCURRENCY": "100"}
        worker, client = ([PYTHON, "-m", f"benchmarks.queue_{what}"] for what in ("worker", "client"))
        left = "SELECT FROM kernel.jobs LIMIT 1"
        self.queue = Subject(name, worker, client, env, left, server.conninfo(name), root)

    @contextmanager
    def serving(self) -> Generator[Server]:
        """Serve auth, with a token to ask it."""
        port = free_port()
        running = self.project.start("run-auth-http", "--port", str(port))
        wait_ready(running.popen, port)
        yield Server(running.pid, port, log_in(self.project, port)["access_token"])
        running.stop()

    def help_s(self) -> float:
        return wall_s([PYTHON, "-m", "app", "--help"], self.project.environment(), self.project.root)

    def ready_cpu_s(self, name: str) -> float:
        popen, _, _ = start(self.project, name)
        used = cpu_s(popen.pid)
        popen.terminate()
        popen.wait(30)
        return used

    def memory_mb(self, name: str) -> float:
        popen, _, _ = start(self.project, name)
        found = resident_mb(popen.pid)
        popen.terminate()
        popen.wait(30)
        return found


def me_cpu_us(server: Server) -> float:
    server.round(REQUESTS)
    return server.cpu_us[-1]


def main() -> None:
    commit, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with scratch() as folder, postgres(folder / "pg") as server, ExitStack() as stack:
        roots = {BEFORE: extracted(commit, folder / "tree"), NOW: ROOT}
        trees = {name: Tree(name, root, folder / name, server, stack) for name, root in roots.items()}
        servers = {name: stack.enter_context(tree.serving()) for name, tree in trees.items()}
        figures: dict[str, dict[str, Measure]] = {
            "`GET /auth/v1/me`, CPU": {name: partial(me_cpu_us, servers[name]) for name in trees},
            "a no-op job, time": {name: lambda tree=tree: 1 / tree.queue.per_s(JOBS) for name, tree in trees.items()},
            "`app --help`, time": {name: tree.help_s for name, tree in trees.items()},
            "`run-auth-http`, spawn to ready": {
                name: partial(start_and_stop, tree.project, "run-auth-http") for name, tree in trees.items()
            },
            **{
                f"`{process}`, CPU until ready": {
                    name: partial(tree.ready_cpu_s, process) for name, tree in trees.items()
                }
                for process in ("run-all-in-one", "run-event-consumer")
            },
            **{
                f"`{process}`, memory": {name: partial(tree.memory_mb, process) for name, tree in trees.items()}
                for process in ("run-all-in-one", "run-auth-http", "run-platform-http", "run-cron-manager")
            },
        }
        table = Table(f"Now / {commit}, medians of {rounds} rounds in turns")
        for title, measures in figures.items():
            ratios: list[float] = []
            for number in range(-1, rounds):
                order = list(measures)[:: 1 if number % 2 == 0 else -1]
                found = {name: measures[name]() for name in order}
                if number >= 0:  # the first round warms
                    ratios.append(found[NOW] / found[BEFORE])
            table.add(title, median(ratios), "x", most=1.05)
        table.show()


if __name__ == "__main__":
    main()
