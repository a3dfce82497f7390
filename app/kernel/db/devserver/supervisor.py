"""The process that starts, watches and stops the embedded PostgreSQL. It runs as a file, without libraries.

Arguments: the folder, the folder of the binaries, `create` or `existing` (whether it may create the data).
Exit code 0: done, or another supervisor runs. Exit code 1: the last line of `supervisor.log` has the reason.
"""

import contextlib
import fcntl
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # isolated Python does not find the package
    sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from app.kernel.db.devserver.child import STEP_S, Child, stop, telling
from app.kernel.db.devserver.place import SHORT, Failure, Place, adopted, find_place, hand_over, private_folder, remove
from app.kernel.product import NAME

POLL_S = 0.2
LOCK_WAIT_S = 0.5  # owners test the lock by taking it for an instant
RESTARTS, STABLE_S = 10, 5.0  # after kill -9 of the postmaster, its children keep the shared memory for about a second
LOG_BYTES = 5_000_000
LOCALE = ("--encoding=UTF8", "--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
SETTINGS = (
    "--listen_addresses=",
    "--max_connections=200",
    "--timezone=UTC",
    "--log_timezone=UTC",
    "--max_slot_wal_keep_size=1GB",  # while nobody stores WAL, the slot of backups keeps it
)


class Supervisor:
    """One run of the supervisor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.served: Path | None = None
        self.asked = False
        self.owners = os.open(folder / "owners.lock", os.O_RDWR | os.O_NOFOLLOW)
        log = folder / "server.log"
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(folder / "server.log.1")
        self.log = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        self.read_from = 0

    def ask(self, *_: object) -> None:
        """Request a stop (signal handler)."""
        self.asked = True

    def gone(self) -> bool:
        """Return whether the folder was deleted."""
        try:
            same = os.path.samestat((self.folder / "owners.lock").stat(), os.fstat(self.owners))
        except FileNotFoundError:
            return True
        return not same or (self.served is not None and not (self.served / "PG_VERSION").exists())

    def over(self) -> bool:
        """Return whether to stop. Without owners, it keeps their lock, so that a new one waits for the stop."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self.owners, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return self.asked or self.gone()

    def reason(self) -> str:
        """Return the most specific line of the server's log."""
        size = os.fstat(self.log).st_size
        return telling(os.pread(self.log, 100_000, max(self.read_from, size - 100_000)))

    def start(self, place: Place, program: str, *arguments: str) -> Child:
        """Start a program that writes to the server's log."""
        self.read_from = os.fstat(self.log).st_size
        return Child([str(place.programs / program), *arguments], place.account, self.log)

    def initialise(self, place: Place) -> None:
        """Create the data in a temporary folder, then move it into place. Raises Failure."""
        builder = place.account
        if builder.uid != os.geteuid():  # initdb wants a user with a name; the group keeps others of that name out
            try:
                builder = builder._replace(uid=pwd.getpwnam("nobody").pw_uid)
            except KeyError:
                raise Failure("initdb needs the user nobody, which this system does not have") from None
        fresh = private_folder(place.base / f"data-new-{os.getpid()}-{time.time_ns()}", builder)
        initdb = self.start(
            place._replace(account=builder),
            "initdb",
            f"--username={NAME}",
            "--auth=trust",
            *LOCALE,
            f"--pgdata={fresh}",
        )
        while initdb.poll() is None and not self.over():
            time.sleep(STEP_S)
        if initdb.returncode == 0:
            if builder != place.account:
                hand_over(fresh, place.account)
            fresh.rename(place.data)
            fd = os.open(place.base, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            return
        stop(initdb)
        remove(place.base, "data-new-*")
        if not self.over():
            raise Failure(f"initdb failed: {self.reason()}")

    def serve(self, place: Place) -> None:
        """Run the server until it is not needed. Raises Failure when it crashes repeatedly."""
        self.served = place.data
        for path in (place.data, place.base / "run"):
            if path.is_dir() and path.lstat().st_uid not in {os.geteuid(), place.account.uid}:
                hand_over(path, place.account)  # the project was moved
        private_folder(place.sockets, place.account)
        quoted = str(place.sockets).replace('"', '""')
        arguments = ("-D", str(place.data), *SETTINGS, f'--unix_socket_directories="{quoted}"')
        failures, server = 0, adopted(place)
        try:
            while not self.over():
                started = time.monotonic()
                server = server or self.start(place, "postgres", *arguments)
                while server.poll() is None and not self.over():
                    time.sleep(POLL_S)
                if server.poll() is None:
                    return
                failures = 1 if time.monotonic() - started > STABLE_S else failures + 1
                say(f"the server ended with {server.poll()} ({failures} in a row): {self.reason()}")
                server = None
                if failures == RESTARTS:
                    raise Failure(f"the server does not stay up: {self.reason()}")
        finally:
            if server is not None:
                stop(server, orderly=not self.gone())
            if place.sockets.parent == SHORT:
                with contextlib.suppress(OSError):
                    place.sockets.rmdir()


def say(line: str) -> None:
    """Write a line to supervisor.log (standard error); ignore a full disk."""
    with contextlib.suppress(OSError):
        os.write(2, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} [{os.getpid()}] {line}\n".encode())


def locked(path: Path) -> bool:
    """Take the lock until this process ends; return False when another supervisor has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(STEP_S)
    return False


def main(folder: Path, programs: Path, *, create: bool) -> int:
    """Supervise until no owner is left; return the exit code."""
    os.closerange(3, 65536)  # inherited from the owner
    with contextlib.suppress(PermissionError):
        os.setsid()
    os.umask(0o077)
    os.chdir("/")
    try:
        if not locked(folder / "supervisor.lock"):
            return 0
        if os.fstat(2).st_size > LOG_BYTES:
            os.ftruncate(2, 0)
        run = Supervisor(folder)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, run.ask)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
            signal.signal(number, lambda _number, _frame: None)  # it has no log to reopen
        place = find_place(folder, programs)
        remove(place.base, "data-new-*")  # of an interrupted initdb, which may have continued for a moment
        if create and not place.data.exists():
            run.initialise(place)
        if place.data.exists():
            run.serve(place)
    except (Failure, OSError, subprocess.SubprocessError) as error:
        if folder.exists():
            say(str(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), create=sys.argv[3] == "create"))
