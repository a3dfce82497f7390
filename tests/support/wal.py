"""A server whose WAL is stored, the agent that stores it, and what kills both at random.

As a program, it is an agent alone: python -m tests.support.wal CONNINFO SETTINGS
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

import psutil
import psycopg

from app.kernel.backup import Target
from app.kernel.backup.agent import Agent
from app.kernel.backup.sealed import Keys
from app.kernel.backup.targets import target_of
from app.kernel.backup.wal import WalArchive
from app.kernel.config.backup import BackupSettings
from app.processes import load_settings
from tests.support.debian import DebianServer, installed, no_server
from tests.support.project import ROOT, eventually

_WRITE = "INSERT INTO written SELECT %s, string_agg(md5(random()::text), '') FROM generate_series(1, 1000)"
KEY = "a key of tests that is long enough to be one"
REQUESTED = "a backup was requested"
_MIB = 1024 * 1024
_TABLES = ROOT / "migrations" / "20261127212500_kernel_create_backup_tables.sql"


def settings_of(given: dict[str, object]) -> BackupSettings:
    """Return settings of backups for tests."""
    return load_settings({"backup.key": KEY, **{f"backup.{key}": value for key, value in given.items()}})[
        BackupSettings
    ]


@contextmanager
def wal_server(segment_mb: int = 1, *, reads_all: bool = False, **options: str) -> Iterator[DebianServer]:
    """Run a server with small segments, of which the role `app` may stream WAL."""
    binaries = installed(15)
    assert binaries is not None
    with no_server(binaries, **{"fsync": "off", **options}) as server:
        server.segment_mb, server.reads_all = segment_mb, reads_all
        server.create()
        allow(server)
        for statement in ("ALTER ROLE app REPLICATION", "CREATE SCHEMA kernel AUTHORIZATION app"):
            server.run(statement)
        with psycopg.connect(conninfo(server), autocommit=True) as connection:
            connection.execute(_TABLES.read_text())
        yield server


def allow(server: DebianServer) -> None:
    """Let `app` stream over TCP."""
    access = server.data / "pg_hba.conf"
    lines = ["host replication app 127.0.0.1/32 scram-sha-256", "local replication admin trust", access.read_text()]
    access.write_text("\n".join(lines))
    server.run("SELECT pg_reload_conf()", "postgres")


def conninfo(*servers: DebianServer) -> str:
    """Return how to reach the one of some servers that accepts writes."""
    hosts, ports = ",".join("127.0.0.1" for _ in servers), ",".join(str(server.port) for server in servers)
    one = "connect_timeout=2 target_session_attrs=read-write"
    return f"host={hosts} port={ports} user=app password={servers[0].password} dbname=app {one}"


@dataclass
class Agents:
    """Agents of a server, each a process of its own, with one target."""

    server: DebianServer
    folder: Path
    settings: dict[str, object] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    others: tuple[DebianServer, ...] = ()

    def __post_init__(self) -> None:
        (self.folder / "target").mkdir(exist_ok=True)
        defaults = {"target": str(self.folder / "target"), "wal_interval": 1, "max_wal_lag": 10}
        self.settings = {**defaults, **self.settings}

    @property
    def log(self) -> Path:
        return self.folder / "agents.log"

    def start(self) -> subprocess.Popen[bytes]:
        """Start one, with a spool of its own, as on a machine of its own."""
        scratch = self.folder / f"spool-{len(self.running)}"
        scratch.mkdir(exist_ok=True)
        given = json.dumps({**self.settings, "scratch": str(scratch)})
        command = [sys.executable, "-m", "tests.support.wal", conninfo(self.server, *self.others), given]
        with self.log.open("ab") as log:
            started = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.running.append(started)
        return started

    def end(self) -> None:
        """End all, with a signal that they obey."""
        for agent in self.running:
            agent.send_signal(signal.SIGCONT)
            agent.terminate()
        for agent in self.running:
            agent.wait(20)
        self.running.clear()

    def receivers(self) -> list[psutil.Process]:
        """Return the running pg_receivewal."""
        found: list[psutil.Process] = []
        for agent in self.running:
            with suppress(psutil.NoSuchProcess):
                found += [child for child in psutil.Process(agent.pid).children() if child.name() == "pg_receivewal"]
        return found

    def archive(self) -> WalArchive:
        """Return what is stored."""
        [(cluster,)] = self.server.all("SELECT system_identifier::text FROM pg_control_system()")
        return WalArchive(self.target(), Keys(KEY), cluster, self.server.segment_mb * _MIB)

    def target(self) -> Target:
        return target_of(settings_of(self.settings), self.folder)

    def said(self, text: str) -> int:
        """Return how often the agents said a text."""
        return self.log.read_text().count(text)

    def objects(self) -> dict[str, float]:
        """Return the stored files with the time of their last change."""
        return {wal.file.name: wal.stored.at.timestamp() for wal in self.archive().files()}

    def row(self) -> tuple | None:
        """Return timeline, lsn, stored_at, waiting_since and problem as recorded."""
        sql = "SELECT timeline, (lsn - '0/0')::bigint, stored_at, waiting_since, problem FROM kernel.backup_wal"
        rows = self.server.all(sql)
        return rows[0] if rows else None

    def written(self) -> int:
        """Return how far WAL is flushed."""
        [(lsn,)] = self.server.all("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint")
        return lsn

    def catch_up(self, end_segment: Callable[[], object] = lambda: None) -> None:
        """Wait until all transactions that were committed before now are stored.

        `end_segment` is called meanwhile: archive_command waits for the end of a segment in which autovacuum wrote.
        """
        [(now,)] = self.server.all("SELECT clock_timestamp()")

        def is_stored() -> bool:
            end_segment()
            return (row := self.row()) is not None and row[2] > now

        eventually(is_stored, 30, 1)

    def has(self, segment: str) -> None:
        """Wait until a full segment is stored."""
        eventually(lambda: segment in self.objects())


@contextmanager
def agents(server: DebianServer, folder: Path, **settings: object) -> Iterator[Agents]:
    found = Agents(server, folder, settings)
    try:
        yield found
    finally:
        found.end()


@contextmanager
def writing(server: DebianServer, pause_s: float = 0.002) -> Iterator[list[int]]:
    """Write rows all the time, through outages; yields the numbers of those that were committed."""
    stop, done = Event(), list[int]()

    def write() -> None:
        number = 0
        while not stop.is_set():
            with suppress(psycopg.Error), psycopg.connect(conninfo(server), autocommit=True) as connection:
                while not stop.wait(pause_s):
                    number += 1
                    connection.execute(_WRITE, (number,))
                    done.append(number)
            time.sleep(0.05)

    with psycopg.connect(conninfo(server), autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS written (number bigint, text text)")
    thread = Thread(target=write)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join(20)


# a server with these copies what it writes into the folder `copies`, and keeps of it only what its slots need
ORACLE = {
    "archive_mode": "on",
    "archive_command": "mkdir -p ../copies && cp %p ../copies/%f.part && mv ../copies/%f.part ../copies/%f",
    "min_wal_size": "2MB",
    "max_wal_size": "4MB",
}


def check_against_copies(found: Agents) -> int:
    """Check that every segment since the first is stored, whole, and as the server wrote it; return the number."""
    [(last,)] = found.server.all("SELECT pg_walfile_name(pg_switch_wal())")
    copies = found.server.folder / "copies"
    eventually((copies / last).exists)
    found.has(last)
    archive, size = found.archive(), found.server.segment_mb * _MIB
    segments = [wal.file for wal in archive.files() if wal.file.number is not None and not wal.file.is_partial]
    assert archive.gaps(segments[0].start(size), segments[0].timeline) == []
    written = sorted(path.name for path in copies.iterdir() if path.name >= segments[0].name and len(path.name) == 24)
    assert [file.name for file in segments] == written
    for name in written:
        fetched = found.folder / "fetched"
        assert archive.get(name, fetched)
        assert fetched.read_bytes() == (copies / name).read_bytes(), name
    return len(written)


def kill_at_random(found: Agents, seconds: float, rng: random.Random) -> dict[str, int]:
    """Kill agents, receivers, the server, and take the target away, at random; return how often what was done."""
    counts: dict[str, int] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(rng.uniform(0.1, 0.8))
        what = rng.choice(["agent", "agent", "receiver", "receiver", "server", "target", "freeze"])
        if _done(found, what, rng):
            counts[what] = counts.get(what, 0) + 1
    return counts


def _done(found: Agents, what: str, rng: random.Random) -> bool:
    agent = rng.choice(found.running)
    if what == "agent":
        agent.kill()
        agent.wait(10)
        found.running.remove(agent)
        found.start()
    elif what == "receiver":
        receivers = found.receivers()
        for receiver in receivers:
            with suppress(psutil.NoSuchProcess):
                receiver.kill()
        return bool(receivers)
    elif what == "server":
        found.server.kill()
        time.sleep(rng.uniform(0, 0.5))
        found.server.start()
    elif what == "target":
        target = found.folder / "target"
        away = target.with_name("away")
        target.rename(away)
        time.sleep(rng.uniform(0.1, 1.5))
        away.rename(target)
    else:
        agent.send_signal(signal.SIGSTOP)
        time.sleep(rng.uniform(0.1, 1))
        agent.send_signal(signal.SIGCONT)
    return True


def main() -> None:
    where, given = sys.argv[1], json.loads(sys.argv[2])
    settings = settings_of(given)
    binaries = installed(15)
    assert binaries is not None
    found = Agent(
        settings,
        target_of(settings, ROOT),
        Keys.of(settings),
        lambda: where,
        lambda _: binaries,
        lambda: print(REQUESTED, flush=True),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: found.stop())
    with ExitStack() as ending:
        ending.callback(found.kill)
        found.run()


if __name__ == "__main__":
    main()
