"""Restores to random moments, compared with what clients were told: python -m tests.backup.restores --times 20"""

import argparse
import bisect
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from app.kernel.backup.scratch import scratch_server
from app.kernel.backup.timelines import lsn_number
from app.kernel.db.devserver.embedded import embedded_binaries
from tests.support.project import ROOT, Project, Running, eventually

WRITERS = 4
APART = timedelta(milliseconds=1)
"""A moment is at least so far from every commit, whose time is taken a little before its order is fixed."""
_COUNT = "INSERT INTO public.counted (writer, n) VALUES (%s, %s)"
_TOLD = """
    SELECT pg_xact_commit_timestamp(xmin), pg_current_wal_insert_lsn()::text FROM public.counted
    WHERE writer = %s AND n = %s
"""


@dataclass(frozen=True, order=True)
class Commit:
    """A row whose commit a client was told of: its time by the server's clock, and a position after it."""

    at: datetime
    writer: int
    n: int
    lsn: int


@dataclass
class Writers:
    """Threads that count, and note each commit."""

    conninfo: str
    first: int
    commits: list[list[Commit]] = field(default_factory=lambda: [[] for _ in range(WRITERS)])
    stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.threads = [threading.Thread(target=self.run, args=(writer,), daemon=True) for writer in range(WRITERS)]
        for thread in self.threads:
            thread.start()

    def run(self, writer: int) -> None:
        pause = random.Random(writer)
        with suppress(psycopg.OperationalError), psycopg.connect(self.conninfo, autocommit=True) as connection:
            for n in range(self.first, sys.maxsize):
                if self.stopping.is_set():
                    return
                connection.execute(_COUNT, (writer, n))
                row = connection.execute(_TOLD, (writer, n)).fetchone()
                assert row is not None
                self.commits[writer].append(Commit(row[0], writer, n, lsn_number(row[1])))
                time.sleep(pause.uniform(0, 0.02))

    def all(self) -> list[Commit]:
        return sorted(commit for commits in self.commits for commit in commits)

    def newest_of_all(self) -> datetime:
        """Return a time before which every commit was noted."""
        return min(commits[-1].at for commits in self.commits)

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(10)


@dataclass
class Branch:
    """What was committed on a timeline, and until when it was noted and stored."""

    timeline: int
    commits: list[Commit]
    until: datetime


@dataclass
class Proof:
    """A deployment that is backed up, destroyed and restored, again and again."""

    project: Project
    seed: int
    kill_share: float = 0.5
    kept: list[Commit] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    restores: list[dict[str, Any]] = field(default_factory=list)
    kills: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.postgres = self.project.root / ".local" / "postgres"

    def prepare(self) -> None:
        self.command("migrate", "up")
        for statement in (
            "ALTER SYSTEM SET track_commit_timestamp = on",
            "CREATE TABLE public.counted (writer int, n bigint, PRIMARY KEY (writer, n))",
        ):
            self.command("db", "shell", "-qc", statement)

    def command(self, *args: str) -> str:
        done = self.project.app(*args, seconds=120)
        assert done.returncode == 0, f"app {' '.join(args)}: {done.stdout} {done.stderr}"
        return done.stdout

    def cycle(self) -> None:
        """Back up under load, go on, destroy the data folder, restore to a moment, compare."""
        agent = self.project.start("run-backup-agent")
        agent.ready()
        first = 1 + max((commit.n for commit in self.kept), default=0)
        writers = Writers(self.conninfo, first)
        writers.start()
        eventually(lambda: all(writers.commits))
        backup = json.loads(self.command("backup", "create", "--json"))
        time.sleep(self.random.uniform(0.3, 1.0))
        moment = self.moment(writers, datetime.fromisoformat(backup["finished_at"]))
        if self.random.random() < 0.2 and self.branches:
            moment = None
        until = writers.newest_of_all()
        self.stored(writers.all()[-1].lsn)
        timeline = self.destroy(agent)
        writers.stop()
        commits = [*self.kept, *writers.all()]
        done = self.restore(*(["--to", moment.isoformat()] if moment else []), "--replace", "--yes")
        self.compare(done, commits, moment, self.postgres_data())
        self.branches.append(Branch(timeline, commits, until))
        end = moment or datetime.fromisoformat(done["last_transaction_at"])
        self.kept = [commit for commit in commits if commit.at <= end]

    def older_timeline(self) -> None:
        """Restore to a moment that was given up: after an older timeline was left."""
        branch = self.branches[0]
        moment = self.apart(branch.commits, branch.until)
        into = self.project.root / "older"
        done = self.restore("--timeline", str(branch.timeline), "--to", moment.isoformat(), "--into", str(into))
        self.compare(done, branch.commits, moment, into)
        shutil.rmtree(into)

    def moment(self, writers: Writers, begin: datetime) -> datetime:
        eventually(lambda: writers.newest_of_all() > begin + 10 * APART)
        end = writers.newest_of_all()
        return self.apart(writers.all(), begin + self.random.random() * (end - begin))

    def apart(self, commits: list[Commit], moment: datetime) -> datetime:
        times = sorted(commit.at for commit in commits)
        while True:
            index = bisect.bisect_left(times, moment - APART)
            if index == len(times) or times[index] > moment + APART:
                return moment
            moment = times[index] - 2 * APART

    def restore(self, *args: str) -> dict[str, Any]:
        """Restore, after restores that were killed; return what it says."""
        into = Path(args[args.index("--into") + 1]) if "--into" in args else None
        place = into or self.postgres_data()
        begun = place.with_name(f"{place.name}.restoring") / "data"
        longest = self.restores[-1]["took_s"] if self.restores else 0.3
        while not self.kills or self.random.random() < self.kill_share:
            victim = self.project.start("backup", "restore", *args)
            eventually(lambda: begun.exists() or victim.popen.poll() is not None)  # noqa: B023
            with suppress(subprocess.TimeoutExpired):
                victim.wait(self.random.uniform(0, longest))
            if victim.popen.poll() is not None:
                assert victim.popen.returncode == 0, victim.said()
                break
            victim.signal(signal.SIGKILL)
            victim.wait()
            self.kills += 1
        if into and into.exists():
            shutil.rmtree(into)
        done = json.loads(self.command("backup", "restore", *args, "--json"))
        self.restores.append(done)
        return done

    def compare(self, done: dict[str, Any], commits: list[Commit], moment: datetime | None, folder: Path) -> None:
        """Note every row that is missing, and every one that should not be there."""
        programs = embedded_binaries()
        assert programs is not None
        with scratch_server(folder, programs) as server, psycopg.connect(server.conninfo("app")) as connection:
            found = connection.execute("SELECT writer, n, pg_xact_commit_timestamp(xmin) FROM public.counted")
            rows = {(writer, n): at for writer, n, at in found}
        if moment is None:
            reached = lsn_number(done["lsn"])
            must = {(c.writer, c.n) for c in commits if c.lsn <= reached}
            may = rows.keys()
        else:
            must = {(c.writer, c.n) for c in commits if c.at <= moment}
            may = must
        times = {(c.writer, c.n): c.at for c in commits}
        which = f"restore {len(self.restores)} to {moment or 'the end'}"
        if missing := must - rows.keys():
            self.wrong.append(f"{which}: {len(missing)} rows are missing, such as {min(missing)}")
        if added := rows.keys() - may:
            self.wrong.append(f"{which}: {len(added)} rows should not be there, such as {min(added)}")
        if other := [row for row in rows if row in times and times[row] != rows[row]]:
            self.wrong.append(f"{which}: {len(other)} rows have another time of commit")
        print(
            f"{which}: {len(rows)} of {len(commits)} rows, timeline {done['timeline']}, {done['took_s']} s", flush=True
        )

    @property
    def conninfo(self) -> str:
        where = dict(line.split(": ", 1) for line in (self.postgres / "where").read_text().splitlines())
        return f"host={where['socket']} port=5432 user=app dbname=app"

    def postgres_data(self) -> Path:
        where = dict(line.split(": ", 1) for line in (self.postgres / "where").read_text().splitlines())
        return Path(where["data"])

    def is_free(self) -> bool:
        """Return whether no supervisor runs."""
        with (self.postgres / "supervisor.lock").open() as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        return False

    def stored(self, lsn: int) -> None:
        """Wait until WAL is stored up to a position."""

        def is_stored() -> bool:
            with psycopg.connect(self.conninfo) as connection:
                row = connection.execute("SELECT lsn::text FROM kernel.backup_wal").fetchone()
            return row is not None and row[0] is not None and lsn_number(row[0]) >= lsn

        eventually(is_stored)

    def destroy(self, agent: Running) -> int:
        """Kill the server and the agent, and delete the data; return the timeline that it was on."""
        with psycopg.connect(self.conninfo) as connection:
            row = connection.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").fetchone()
            assert row is not None
            timeline = int(row[0][:8], 16)
        data = self.postgres_data()
        postmaster = int((data / "postmaster.pid").read_text().split("\n")[0])
        agent.signal(signal.SIGKILL)
        os.kill(postmaster, signal.SIGKILL)
        agent.wait()
        eventually(lambda: not Path(f"/proc/{postmaster}").exists() and self.is_free())
        shutil.rmtree(data)
        return timeline


@contextmanager
def proof(folder: Path, seed: int, **env: str) -> Iterator[Proof]:
    """A deployment in a copy of the project, with an embedded server that is backed up to a folder."""
    folder.chmod(0o755)
    (folder / "scratch").mkdir()
    made = Project(ROOT, folder / "scratch").copy(folder / "copy")
    made.env |= {"APP_ENV": "local", "LOGGER_FORMAT": "json", "BACKUP_WAL_INTERVAL": "1s", **env}
    try:
        yield Proof(made, seed)
    finally:
        made.end()


def main() -> int:
    """The exit status is 1 if a row was lost or should not be there."""
    parser = argparse.ArgumentParser(prog="python -m tests.backup.restores", description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="number of restores")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    wanted = parser.parse_args()
    print(f"seed {wanted.seed}")
    folder = Path(tempfile.mkdtemp(prefix="restores-"))
    with proof(folder, wanted.seed) as running:
        running.prepare()
        for _ in range(wanted.times):
            running.cycle()
        running.older_timeline()
        seconds = sorted(done["took_s"] for done in running.restores)
    print(
        f"{len(seconds)} restores, median {seconds[len(seconds) // 2]} s, most {seconds[-1]} s, {running.kills} killed"
    )
    print("\n".join(running.wrong) or "exactly the rows that were committed until then")
    shutil.rmtree(folder, ignore_errors=True)
    return int(bool(running.wrong))


if __name__ == "__main__":
    sys.exit(main())
