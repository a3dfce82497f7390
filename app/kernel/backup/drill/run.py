"""The course of a drill."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from app.kernel.backup import Backup, BackupInvalid
from app.kernel.backup.counts import compare
from app.kernel.backup.drill import Drill, Found
from app.kernel.backup.drill.database import content, foreign_keys, indexes, session, tables
from app.kernel.backup.drill.manifest import manifest
from app.kernel.backup.drill.migrated import migrations
from app.kernel.backup.drill.queue import queue
from app.kernel.backup.engine import Engine, Prepared, Progress, Restore, Stopped, Wal
from app.kernel.backup.managed import Address, Managed
from app.kernel.backup.replay import Replayed, Until, replaying
from app.kernel.backup.scratch import Scratch
from app.kernel.backup.timelines import lsn_number
from app.kernel.db.devserver.child import stop
from app.kernel.product import NAME
from app.kernel.text import plural

Login = Callable[[str], Found]
"""Signs in to a process on the database with a connection string, as a user would. Starts it, and ends it."""
_LOOK_S = 0.2


class _Failed(Exception):
    """A step without which the others are not possible has failed."""


@dataclass(slots=True)
class Course:
    """What a drill needs. `files` are the migrations.

    `user` is the role of the application, which looks at the data: reading a table can run functions of its owner,
    which nobody should run as superuser.
    """

    engine: Engine
    folder: Path
    files: Path
    user: str
    login: Login
    progress: Progress
    at: Callable[[Address], str] = lambda address: make_conninfo("", host=address.host, port=address.port)
    """Returns the connection string of a scratch server of the provider, for the role of the application."""
    _server: Scratch | None = field(default=None, repr=False)

    def run(self, drill: Drill) -> None:
        """Restore the backup of a drill into the folder and check it; the drill has the results.

        Writes neither to the target nor to production. Raises Stopped, and TargetUnavailable from the engine.
        """
        started = time.monotonic()
        with suppress(_Failed), ExitStack() as stack:
            as_superuser = ""
            if isinstance(self.engine, Managed):
                as_user = self._provided(self.engine, drill, stack)
            else:
                prepared = self._prepare(drill)
                drill.check("manifest", lambda: manifest(prepared.folder, self.progress.step("check the files", None)))
                server, replayed = self._replay(drill, prepared, stack)
                drill.restored_lsn, drill.restored_to = replayed.lsn, replayed.last_transaction_at
                last_at = replayed.last_transaction_at or prepared.backup.finished_at
                drill.rpo_s = lost_s(drill.started_at, last_at, prepared.stored)
                stack.enter_context(self._ended_when_stopped(server))
                as_superuser = server.conninfo(prepared.backup.database)
                as_user = make_conninfo(as_superuser, user=self.user)
            drill.check("content", lambda: _asked(as_user, content))
            drill.check("migrations", lambda: migrations(as_user, self.files, drill.schema))
            if self._check(drill, "login", lambda: self.login(as_user)):
                drill.rto_s = round(time.monotonic() - started, 3)
            self._check(drill, "foreign keys", lambda: _asked(as_user, foreign_keys))
            self._check(drill, "queue", lambda: _asked(as_user, queue))
            if as_superuser:  # which amcheck takes, and no provider gives
                self._check(drill, "tables", lambda: _asked(as_superuser, tables))
                self._check(drill, "indexes", lambda: _asked(as_superuser, indexes))

    def _provided(self, engine: Managed, drill: Drill, stack: ExitStack) -> str:
        """Let the provider restore to a scratch server, which is removed with the stack; return where it is."""
        found: list[Address] = []

        def restore() -> Found:
            wanted = Restore(self.folder, drill.backup_id)
            address = stack.enter_context(engine.restored(f"{NAME}-drill", wanted, self.progress))
            if not is_new(self.at(address), (datetime.now(UTC) - drill.started_at).total_seconds()):
                return Found(
                    problems=(f"{address.host}:{address.port} ran before this drill: it is no scratch server",)
                )
            found.append(address)
            return Found(f"restored by the provider to {address.host}:{address.port}")

        self._require(drill, "restore", restore)
        wal = engine.wal("")
        drill.restored_to = found[0].restored_to or (wal.stored_at if wal else engine.get(drill.backup_id).finished_at)
        drill.rpo_s = lost_s(drill.started_at, drill.restored_to, None)
        return self.at(found[0])

    def _prepare(self, drill: Drill) -> Prepared:
        made: list[Prepared] = []

        def prepare() -> Found:
            wanted = Restore(self.folder / "data", drill.backup_id, cluster=drill.cluster)
            try:
                made.append(self.engine.prepare(wanted, self.progress))
            except BackupInvalid as error:
                return Found(problems=(str(error),))
            return Found("fetched, opened and unpacked")

        self._require(drill, "restore", prepare)
        return made[0]

    def _replay(self, drill: Drill, prepared: Prepared, stack: ExitStack) -> tuple[Scratch, Replayed]:
        """Replay WAL to the position of the counts, compare them, and replay the rest. Returns a server for writes."""
        running: list[tuple[Scratch, Replayed]] = []

        def compared() -> Found:
            counts = prepared.backup.counts
            if counts is None or not counts.tables:
                return Found(skipped="the backup has no counts")
            with ExitStack() as paused:
                until = Until(lsn=counts.lsn, timeline=prepared.timeline)
                server, replayed = paused.enter_context(self._replaying(prepared, until))
                found = compare(make_conninfo(server.conninfo(prepared.backup.database), user=self.user), counts)
                if not replayed.is_reached:  # the stored WAL ends before, or there: it accepts writes already
                    stack.push(paused.pop_all())
                    running.append((server, replayed))
            return Found(f"{plural(found.tables, 'table')}, {plural(found.rows, 'row')}", found.problems, found.notes)

        def replayed_all() -> Found:
            if not running:
                until = Until(timeline=prepared.timeline)
                running.append(stack.enter_context(self._replaying(prepared, until)))
            return reached(prepared.backup, running[0][1], prepared.stored)

        drill.check("counts", compared)
        self._require(drill, "wal", replayed_all, lambda: bool(running))
        return running[0]

    @contextmanager
    def _replaying(self, prepared: Prepared, until: Until) -> Generator[tuple[Scratch, Replayed]]:
        advance = self.progress.step("replay", None)
        is_last = not until.lsn  # nobody needs its data folder afterwards
        with replaying(
            prepared,
            until,
            action="promote" if is_last else "pause",
            users=(self.user,),
            tick=lambda _: advance(0),
            orderly=not is_last,
        ) as found:
            yield found

    def _check(self, drill: Drill, name: str, work: Callable[[], Found]) -> bool:
        """Run a check on the server. Raises Stopped."""
        advance = self.progress.step(f"check: {name}", None)
        state = drill.check(name, work).state
        advance(0)
        return state == "ok"

    def _require(
        self, drill: Drill, name: str, work: Callable[[], Found], is_usable: Callable[[], bool] = lambda: False
    ) -> None:
        if drill.check(name, work).state == "failed" and not is_usable():
            raise _Failed

    @contextmanager
    def _ended_when_stopped(self, server: Scratch) -> Generator[None]:
        """End the server as soon as the run is asked to stop: what waits for it fails, and the run ends."""
        advance, done = self.progress.step("check", None), threading.Event()

        def watch() -> None:
            while not done.wait(_LOOK_S):
                try:
                    advance(0)
                except Stopped:
                    if server.child is not None:
                        stop(server.child, orderly=False)
                    return

        watcher = threading.Thread(target=watch, name="drill-stop", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def is_new(where: str, age_s: float) -> bool:
    """Return whether a server was started within the last seconds, by its own clock."""
    with session(where) as connection:
        row = connection.execute(
            "SELECT clock_timestamp() - pg_postmaster_start_time() < make_interval(secs => %s)", (age_s,)
        ).fetchone()
    return row == (True,)


def begun(engine: Engine, backup: Backup) -> Drill:
    """Return a drill of a backup that begins now."""
    return Drill(
        backup_id=backup.id,
        cluster=backup.cluster,
        engine=engine.name,
        started_at=datetime.now(UTC),
        server_version=backup.server_version,
        app_version=backup.app_version,
        schema=backup.schema,
        size_bytes=backup.size_bytes,
        stored_bytes=backup.stored_bytes,
    )


def lost_s(began_at: datetime, last_commit_at: datetime, stored: Wal | None) -> float:
    """Return how long before the begin the last commit was that was stored then; WAL that came later does not count."""
    until = min(last_commit_at, stored.stored_at) if stored is not None else last_commit_at
    return round(max(0.0, (began_at - until).total_seconds()), 3)


def reached(backup: Backup, replayed: Replayed, stored: Wal | None) -> Found:
    """Compare the end of replay with the end of what is stored: a damaged record ends recovery without an error."""
    if stored is None:
        return Found(f"replayed until {replayed.lsn}, the end of the backup: no later WAL is stored")
    end, wanted = lsn_number(replayed.lsn), lsn_number(stored.lsn)
    if stored.gap:
        return Found(problems=(stored.gap,))
    if end // backup.wal_segment_bytes < (wanted - 1) // backup.wal_segment_bytes:
        return Found(problems=(f"replay ended at {replayed.lsn}, although WAL until {stored.lsn} is stored",))
    return Found(f"replayed until {replayed.lsn}")


def _asked(where: str, look: Callable[[psycopg.Connection[Any]], Found]) -> Found:
    with session(where) as connection:
        return look(connection)
