"""What the benchmarks share: interleaved medians, what a process used, servers to measure, the table.

Times on a shared machine mean little, so every figure is compared with others that were measured in turns with it.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.conftest import PostgresServer, start_server, stop_server
from tests.support.project import ROOT, Project

_SCHEDULED = 2  # CPUCLOCK_SCHED: what clock_getcpuclockid(3) makes of a pid on Linux, in nanoseconds
_POLL_S = 0.005

_OWN = ROOT / ".venv" / "bin" / "python"
PYTHON = os.environ.get("APP_PYTHON") or str(_OWN if _OWN.exists() else sys.executable)
"""Runs ours: without the peers, because Dynaconf imports Flask and Jinja where it finds them, as no deployment does."""


class Broken(Exception):
    """The benchmark could not measure: something does not work."""


def interleaved(subjects: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Call each subject once a round, in alternating order; return the median of what each returned."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds):
        names = list(subjects)
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(subjects[name]())
    return {name: median(values) for name, values in found.items()}


def wall_s(command: list[str], env: Mapping[str, str], cwd: Path) -> float:
    """Return the seconds a command takes. Raises Broken when it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    took_s = time.perf_counter() - started
    if done.returncode != 0 or not (done.stdout or command[1:] == ["-c", "pass"]):
        raise Broken(f"{' '.join(command)}: {done.returncode} {done.stderr[-1000:]}")
    return took_s


def cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, that all threads of a process have used so far."""
    return time.clock_gettime(~pid << 3 | _SCHEDULED)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[0]) / 1024


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def get(port: int, path: str, timeout_s: float = 10) -> bytes:
    """Return the whole response to a GET, empty when there is none."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: sock.recv(65536), b""))
    except OSError:
        return b""


def wait_ready(popen: subprocess.Popen[bytes], port: int, path: str = "/ready", patience_s: float = 60) -> None:
    """Wait for the first 200. Raises Broken when the process ends instead, or takes too long."""
    deadline = time.monotonic() + patience_s
    while b" 200 " not in get(port, path)[:16]:
        if popen.poll() is not None or time.monotonic() > deadline:
            raise Broken(f"{popen.args} is not ready; exit status {popen.poll()}")
        time.sleep(_POLL_S)


def stop(popen: subprocess.Popen[bytes]) -> None:
    """End a process that we started, and wait for it."""
    popen.terminate()
    try:
        popen.wait(20)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait(20)


@contextmanager
def scratch() -> Generator[Path]:
    """A temporary folder that the embedded server's user can reach."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def postgres(folder: Path) -> Generator[PostgresServer]:
    """A PostgreSQL server of our own, which flushes what it writes."""
    holder, server = start_server(folder, "flush")
    try:
        yield server
    finally:
        stop_server(holder)


@contextmanager
def project(folder: Path, server: PostgresServer, root: Path = ROOT) -> Generator[Project]:
    """A copy of a project in the folder, on the server. Ends what it started."""
    copy = folder / "project"
    for name in ("app", "migrations", "settings"):
        shutil.copytree(root / name, copy / name)
    env = {
        "LOGGER_OUTPUT": str(folder / "log"),
        "PYTHONDONTWRITEBYTECODE": "",
        "POSTGRES_HOST": server.host,
        "POSTGRES_PORT": str(server.port),
        "POSTGRES_USER": server.user,
    }
    made = Project(copy, folder, env, PYTHON)
    try:
        yield made
    finally:
        made.end()


class Table:
    """Figures against what was asked, as a markdown table."""

    def __init__(self, title: str) -> None:
        self._rows = [("figure", "asked", "measured", "ok"), ("---", "---", "---", "---")]
        print(f"\n## {title}\n\nOurs is run by {PYTHON}.", flush=True)

    def add(self, figure: str, measured: float, unit: str, most: float | None = None, least: float | None = None):
        """Add a figure, with the most or the least it may be."""
        if most is not None:
            asked, ok = f"at most {most:g}{unit}", measured <= most
        elif least is not None:
            asked, ok = f"at least {least:g}{unit}", measured >= least
        else:
            asked, ok = "", None
        digits = 0 if measured >= 100 else 1 if measured >= 10 else 2
        verdict = {True: "yes", False: "NO", None: ""}[ok]
        self._rows.append((figure, asked, f"{measured:,.{digits}f}{unit}", verdict))

    def lines(self) -> list[str]:
        """Return it as markdown."""
        widths = [max(len(row[column]) for row in self._rows) for column in range(4)]
        return [
            "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |"
            for row in self._rows
        ]

    def missed(self) -> list[str]:
        """Return the figures that are not as asked."""
        return [f"{figure}: {measured}, asked {asked}" for figure, asked, measured, ok in self._rows if ok == "NO"]

    def show(self) -> None:
        print(f"Load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, this benchmark included.\n")
        print(*self.lines(), sep="\n")
