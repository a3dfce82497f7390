"""A server of PostgreSQL on a restored data folder: reached by a private socket only, ended with its owner.

What came with the folder in files of configuration is set aside meanwhile: it may name libraries, certificates and
addresses that are not here, and archive, replicate or subscribe where the server did that was backed up.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from app.kernel.db.devserver.child import LINUX, STEP_S, Account, Child, stop, telling
from app.kernel.db.devserver.place import (
    Failure,
    Place,
    account_of,
    copied,
    hand_over,
    private_folder,
    socket_folder,
    version,
)
from app.kernel.errors import Unavailable
from app.kernel.product import NAME

_IDLE_S = 300.0
_ENDING_S = 2.0
_LOG_BYTES = 200_000
_ASIDE = "postgresql.auto.conf"
_REPORTING, _LOGIN_TRIGGERS = 15, 17  # major versions since which a server reports progress of recovery, has these
# the server refuses to replay, and drops commit timestamps, with lower values than those it was backed up with
_KEPT = {
    "max_connections setting": ("max_connections", 100),
    "max_worker_processes setting": ("max_worker_processes", 8),
    "max_wal_senders setting": ("max_wal_senders", 10),
    "max_prepared_xacts setting": ("max_prepared_transactions", 0),
    "max_locks_per_xact setting": ("max_locks_per_transaction", 64),
}
_OPTIONS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "archive_mode": "off",
    "max_logical_replication_workers": "0",  # a subscription would connect to its publisher
    "restart_after_crash": "off",
    "autovacuum": "off",
    "jit": "off",  # units of systemd forbid memory that is writable and executable
    "log_line_prefix": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class _NoProgress(Unavailable):
    """The server has logged nothing for long."""


class ServerEnded(Unavailable):
    """The server ended by itself; `output` is the end of its log."""

    def __init__(self, folder: Path, output: bytes) -> None:
        super().__init__(f"PostgreSQL ended on {folder}: {telling(output)}")
        self.output = output


@dataclass(slots=True)
class Scratch:
    """A running server. `user` is its superuser, whatever the name; connections need no password."""

    folder: Path
    sockets: Path
    log: Path
    user: str = NAME
    child: Child | None = field(default=None, repr=False)

    def conninfo(self, database: str = "template1") -> str:
        """Return the connection string of a database."""
        where = {"host": str(self.sockets), "port": 5432, "user": self.user, "dbname": database}
        return make_conninfo("", **where, client_encoding="UTF8")  # that of SQL_ASCII makes texts bytes

    @property
    def state(self) -> str:
        """`standby`: it accepts reads and replays WAL; `ready`: it accepts writes; else not yet, or no longer."""
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except OSError:
            return ""
        return lines[7].strip() if len(lines) > 7 else ""

    @property
    def output(self) -> bytes:
        """The end of its log."""
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
            return log.read()

    def wait(
        self,
        done: Callable[["Scratch"], bool],
        *,
        idle_s: float = _IDLE_S,
        tick: Callable[["Scratch"], object] = lambda _: None,
    ) -> None:
        """Wait until `done`; call `tick` meanwhile. Both may raise.

        Raises ServerEnded with the reason from its log, or Unavailable when it logged nothing for `idle_s`: one that
        starts, flushes or replays logs its progress.
        """
        seen, deadline = -1, time.monotonic() + idle_s
        while not done(self):
            if self.child is None or self.child.poll() is not None:
                raise ServerEnded(self.folder, self.output)
            tick(self)
            if (size := self.log.stat().st_size) != seen:
                seen, deadline = size, time.monotonic() + idle_s
            if time.monotonic() > deadline:
                raise _NoProgress(f"PostgreSQL made no progress on {self.folder} in {idle_s:g} s")
            time.sleep(STEP_S)

    def accepts_reads(self) -> bool:
        """Return whether it accepts connections, at least for reads; that is without `hot_standby=off`."""
        return self.state in {"standby", "ready"}

    def accepts_writes(self) -> bool:
        """Return whether it accepts writes, if it was started with `hot_standby=off`; else at least reads."""
        return self.state == "ready"


@contextmanager
def scratch_server(
    folder: Path,
    programs: Path,
    options: Mapping[str, str] | None = None,
    *,
    until: Callable[[Scratch], bool] = Scratch.accepts_reads,
    users: Sequence[str] = (),
    idle_s: float = _IDLE_S,
    tick: Callable[[Scratch], object] = lambda _: None,
    orderly: bool = True,
) -> Generator[Scratch]:
    """Run a server on a data folder with `options` of PostgreSQL; yield it once `until` is true.

    It runs as the owner of the folder; root's folder is given to an account of its own. It ends with the block, with
    this process, and with the thread that enters the block; `orderly`: cleanly, so that the folder can be used again.
    `users` are roles that may exist on it besides the usual ones: any serves to find the superuser.
    Raises Unavailable when it does not start, with the reason.
    """
    folder = folder.resolve()
    try:
        account, programs, runtime = _place(folder, programs)
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, runtime, ignore_errors=True)
            _set_aside(folder, undo)
            server = Scratch(folder, runtime, runtime / "log")
            _configure(server, account, {**_OPTIONS, **_kept_settings(folder, programs), **(options or {})})
            output = os.open(server.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            try:
                command = [str(programs / "postgres"), "-D", str(folder), "-c", f"config_file={runtime / 'conf'}"]
                server.child = Child(command, account, output, folder)
            finally:
                os.close(output)
            undo.callback(_end, server.child, orderly)
            server.wait(until, idle_s=idle_s, tick=tick)
            server.user = _superuser(server, users)
            yield server
    except (Failure, OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"PostgreSQL cannot run on {folder}: {error}") from error


def control(folder: Path, programs: Path) -> dict[str, str]:
    """Return what pg_controldata prints of a data folder, by name. Raises Unavailable if it has another version."""
    command = [str(programs / "pg_controldata"), "-D", str(folder)]
    try:
        ended = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", timeout=60, env={"LC_ALL": "C"}, check=True
        )
    except subprocess.CalledProcessError as error:
        reason = telling(error.stderr.encode()).removeprefix("pg_controldata: ")
        raise Unavailable(f"PostgreSQL cannot run on {folder}: {reason}") from error
    lines = (line.partition(":") for line in ended.stdout.splitlines())
    return {name: value.strip() for name, _, value in lines}


def _kept_settings(folder: Path, programs: Path) -> dict[str, str]:
    """Return the settings that a server must have to replay the WAL of the one that was backed up."""
    found = control(folder, programs)
    wanted = {option: str(max(least, int(found.get(name, "0")))) for name, (option, least) in _KEPT.items()}
    return {**wanted, "track_commit_timestamp": found.get("track_commit_timestamp setting", "off")}


def _place(folder: Path, programs: Path) -> tuple[Account, Path, Path]:
    """Return the account, the programs that it can run, and a private folder for what the server needs to run."""
    owner, account = folder.stat(), Account(os.geteuid(), os.getegid())
    if account.uid == 0:
        account = Account(owner.st_uid, owner.st_gid) if owner.st_uid else account_of(folder)
        hand_over(folder, account)
    folder.chmod(0o700)
    runtime = private_folder(socket_folder(folder, account), account)
    for candidate in (account, account._replace(search=True))[: 2 if LINUX and os.geteuid() == 0 else 1]:
        if version(Place(programs, folder, candidate)) and _runs_python(candidate, folder):
            return candidate, programs, runtime
    if os.geteuid() == 0 and version(Place(near := copied(programs, runtime), folder, account)):
        return account, near, runtime
    raise Failure(
        f"the user {account.uid} cannot reach the folder, {programs} or {sys.executable}: name another folder"
    )


def _runs_python(account: Account, folder: Path) -> bool:
    """Return whether the account can run a restore_command of ours."""
    with suppress(OSError, subprocess.SubprocessError):
        return Child([sys.executable, "-I", "-S", "-c", ""], account, subprocess.DEVNULL, folder).wait() == 0
    return False


def _set_aside(folder: Path, undo: ExitStack) -> None:
    kept, aside = folder / _ASIDE, folder / f"{_ASIDE}.aside"
    if kept.exists():  # else a run that was killed has set it aside
        kept.replace(aside)
    if aside.exists():
        undo.callback(aside.replace, kept)


def _configure(server: Scratch, account: Account, options: Mapping[str, str]) -> None:
    major = int((server.folder / "PG_VERSION").read_text().strip())
    options = {
        "unix_socket_directories": '"{}"'.format(str(server.sockets).replace('"', '""')),
        "hba_file": str(server.sockets / "hba"),
        "ident_file": str(server.sockets / "ident"),
        **({"log_startup_progress_interval": "5s"} if major >= _REPORTING else {}),
        **({"event_triggers": "off"} if major >= _LOGIN_TRIGGERS else {}),
        **options,
    }
    lines = (f"{name} = '{_quoted(value)}'\n" for name, value in options.items())
    for name, text in (("conf", "".join(lines)), ("hba", "local all all trust\n"), ("ident", ""), ("log", "")):
        path = server.sockets / name
        path.write_text(text)
        if account.uid != os.geteuid():
            os.chown(path, account.uid, account.gid)  # which units of systemd forbid


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _end(child: Child, orderly: bool) -> None:
    stop(child, orderly=orderly)
    child.wait()


def _superuser(server: Scratch, users: Sequence[str]) -> str:
    """Return the name of the role that initdb made. Any role may ask; its id is always 10."""
    reason = "none of its roles is known"
    for user in dict.fromkeys((NAME, "postgres", *users)):
        server.user = user
        try:
            with psycopg.connect(server.conninfo(), connect_timeout=10) as connection:
                found = connection.execute("SELECT rolname FROM pg_catalog.pg_roles WHERE oid = '10'").fetchone()
                return str(found[0]) if found else user
        except psycopg.OperationalError as error:
            if "role " not in (told := telling(str(error).encode())):
                reason = told.partition("failed: ")[2] or told
    with suppress(_NoProgress):  # it may be ending, which has a better reason
        server.wait(lambda _: False, idle_s=_ENDING_S)
    raise Unavailable(f"PostgreSQL runs on {server.folder}, but refuses connections: {reason}")
