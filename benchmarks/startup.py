"""How long commands and processes take to start, and what the processes weigh.

`python -m benchmarks.startup [rounds]`
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from app.processes import PROCESSES
from benchmarks.measure import (
    PYTHON,
    Table,
    cpu_s,
    free_port,
    get,
    interleaved,
    postgres,
    project,
    resident_mb,
    scratch,
    stop,
    wait_ready,
    wall_s,
)
from tests.support.project import Project, eventually

BARE = "python -c pass"
PEERS = ("flask", "litestar", "celery")
COMPLETION = {"_APP_COMPLETE": "complete_bash", "COMP_WORDS": "app ", "COMP_CWORD": "1"}


def commands(of: Project, rounds: int) -> None:
    """Compare `app --help` with bare Python and with the help of others."""
    tools = Path(sys.executable).parent
    env = of.environment()
    subjects: dict[str, Callable[[], float]] = {
        BARE: partial(wall_s, [PYTHON, "-c", "pass"], env, of.root),
        "app --help": partial(wall_s, [PYTHON, "-m", "app", "--help"], env, of.root),
        "app completion": partial(wall_s, [PYTHON, "-m", "app"], env | COMPLETION, of.root),
        "app migrate --help": partial(wall_s, [PYTHON, "-m", "app", "migrate", "--help"], env, of.root),
        # elsewhere, because they load any project that they find where they are
        **{f"{name} --help": partial(wall_s, [str(tools / name), "--help"], env, of.scratch) for name in PEERS},
    }
    for subject in subjects.values():  # writes __pycache__
        subject()
    took_s = interleaved(subjects, rounds)
    table = Table(f"Commands, medians of {rounds} interleaved rounds")
    ours = took_s["app --help"]
    table.add(f"`{BARE}`", took_s[BARE] * 1000, " ms")
    table.add(f"`app --help` / `{BARE}`", ours / took_s[BARE], "x", most=8)
    for name in PEERS:
        table.add(f"`{name} --help` / `app --help`", took_s[f"{name} --help"] / ours, "x", least=1)
    table.add(f"completion of `app ` / `{BARE}`", took_s["app completion"] / took_s[BARE], "x")
    table.add(f"`app migrate --help` / `{BARE}`", took_s["app migrate --help"] / took_s[BARE], "x")
    table.show()


def start(of: Project, name: str) -> tuple[subprocess.Popen[bytes], int, float]:
    """Start a process; return it, its port, and the seconds until it was ready."""
    port = free_port()
    started = time.perf_counter()
    popen = of.start(name, "--port", str(port)).popen
    wait_ready(popen, port)
    return popen, port, time.perf_counter() - started


def start_and_stop(of: Project, name: str) -> float:
    popen, _, took_s = start(of, name)
    stop(popen)
    return took_s


def embedded_stopped(of: Project) -> None:
    """Wait until the embedded server has noticed that its owner is gone."""
    eventually(lambda: not list((of.root / ".local").rglob("postmaster.pid")))
    time.sleep(1)  # its supervisor


def fresh_then_warm(folder: Path, warmed: Project) -> tuple[float, float]:
    """Start all in one where no data are yet, then where they are."""
    shutil.copytree(warmed.root, folder)
    of = Project(folder, warmed.scratch, {"LOGGER_OUTPUT": str(folder / "log")}, PYTHON, warmed.running)
    fresh_s = start_and_stop(of, "run-all-in-one")
    embedded_stopped(of)
    warm_s = start_and_stop(of, "run-all-in-one")
    embedded_stopped(of)
    return fresh_s, warm_s


def to_ready(of: Project, folder: Path, rounds: int) -> None:
    """Measure from spawn to the first 200 of /ready."""
    start_and_stop(of, "run-all-in-one")  # migrations; writes __pycache__
    pairs: list[tuple[float, float]] = []
    used_s: list[float] = []

    def both() -> float:
        pairs.append(fresh_then_warm(folder / f"embedded-{len(pairs)}", of))
        return pairs[-1][0]

    def http() -> float:
        popen, _, took_s = start(of, "run-auth-http")
        used_s.append(cpu_s(popen.pid))
        stop(popen)
        return took_s

    bare = partial(wall_s, [PYTHON, "-c", "pass"], of.environment(), of.root)
    took_s = interleaved(
        {
            BARE: bare,
            "http": http,
            "cron": partial(start_and_stop, of, "run-cron-manager"),
            "fresh": both,
            "warm": lambda: pairs[-1][1],
        },
        rounds,
    )
    table = Table(f"Spawn to ready, medians of {rounds} interleaved rounds")
    table.add("`run-auth-http`, PostgreSQL running", took_s["http"], " s", most=1.2)
    table.add("the same, CPU time: what it takes on an idle machine", median(used_s), " s")
    table.add(f"the same / `{BARE}`", took_s["http"] / took_s[BARE], "x")
    table.add("`run-cron-manager`, PostgreSQL running", took_s["cron"], " s")
    table.add("`run-all-in-one`, embedded, fresh", took_s["fresh"], " s", most=4)
    table.add("`run-all-in-one`, embedded, data exist", took_s["warm"], " s", most=2)
    table.show()


def memory(of: Project) -> None:
    """Measure what each process weighs when it is ready, and after its metrics were read."""
    table = Table("Resident memory")
    ready_mb: dict[str, float] = {}
    scraped_mb: dict[str, float] = {}
    for name in PROCESSES:
        popen, port, _ = start(of, name)
        time.sleep(1)
        ready_mb[name] = resident_mb(popen.pid)
        get(port, "/metrics")
        scraped_mb[name] = resident_mb(popen.pid)
        stop(popen)
    whole = ready_mb.pop("run-all-in-one")
    table.add("`run-all-in-one`, ready", whole, " MB")
    table.add("the same, after /metrics", scraped_mb["run-all-in-one"], " MB")
    for name, mb in ready_mb.items():
        table.add(f"`{name}`, ready", mb, " MB", most=80)
        table.add("the same, after /metrics", scraped_mb[name], " MB", most=80)
        table.add("the same / `run-all-in-one`, ready", mb / whole, "x", most=1)
    table.show()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with scratch() as folder, postgres(folder / "pg") as server, project(folder, server) as of:
        commands(of, rounds)
        to_ready(of, folder, max(3, rounds // 3))
        memory(of)


if __name__ == "__main__":
    main()
