"""The process that starts, watches and stops the embedded PostgreSQL. Run as a file; it imports nothing of ours.

Arguments: the folder, the folder of the binaries, `create` or `existing` (whether it may make the data).
Exit code 0: the work is done, or another supervisor is doing it. 1: the last line of `supervisor.log` says why not.
"""

import contextlib
import ctypes
import fcntl
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

LINUX = sys.platform == "linux"
POLL_S, STEP_S = 0.2, 0.02
LOCK_WAIT_S = 0.5  # owners look at the lock by taking it for an instant
RESTARTS, STABLE_S = 10, 5.0  # after kill -9 of the postmaster its children hold the shared memory for about a second
STOP = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
LOG_BYTES = 5_000_000
NAME = Path(__file__).resolve().parents[2].name  # of the package, as app.kernel.product has it
INITDB = (
    f"--username={NAME} --auth=trust --encoding=UTF8 --no-locale --locale-provider=builtin --builtin-locale=C.UTF-8"
)
SETTINGS = ("--listen_addresses=", "--max_connections=200", "--timezone=UTC", "--log_timezone=UTC")
ACCOUNTS = range(60578, 61184)  # ids that neither distributions nor systemd give away, and containers map
SHORT, LASTING = Path("/tmp"), Path("/var/tmp")  # noqa: S108 - what we make there is checked to be ours


class Failure(Exception):
    """The server cannot be started; the message is one line for people."""


class Account(NamedTuple):
    """Whom PostgreSQL runs as, and whether with the capability to read and traverse everything."""

    uid: int
    gid: int
    search: bool = False


class Place(NamedTuple):
    """Where PostgreSQL is and whom it runs as. `base` has the folders `data` and `run`."""

    programs: Path
    base: Path
    account: Account

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.base / "data"

    @property
    def sockets(self) -> Path:
        """The folder of the socket: below the base, or in /tmp when its path is too long for a socket."""
        inside = self.base / "run"
        if len(os.fsencode(inside / ".s.PGSQL.5432")) < 100:
            return inside
        return SHORT / f"{NAME}-postgres-{digest(self.base)}-{self.account.uid}"


class Child(subprocess.Popen[bytes]):
    """A program of PostgreSQL under an account, stopped by the kernel when this process dies (Linux)."""

    def __init__(self, command: list[str], account: Account, output: int, folder: Path = Path("/")) -> None:
        self.account = account
        self.folder = folder
        self.parent = os.getpid()
        self.libc = ctypes.CDLL(None, use_errno=True)
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        super().__init__(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**kept, "LC_ALL": "C", "TZ": "UTC"},
            preexec_fn=self.prepare,
        )

    def prctl(self, option: int, *values: int) -> None:
        """Call prctl(2). Raises OSError."""
        if self.libc.prctl(option, *(ctypes.c_ulong(value) for value in (*values, 0, 0, 0)[:4])) != 0:
            raise OSError(ctypes.get_errno(), "prctl")

    def prepare(self) -> None:
        """Drop privileges; after that, because a change of credentials clears it, ask for the signal."""
        if self.account.uid != os.geteuid():
            if self.account.search:
                self.prctl(28, 4)  # PR_SET_SECUREBITS, NO_SETUID_FIXUP: else access(2) ignores capabilities
            os.setgroups([])
            os.setgid(self.account.gid)
            os.setuid(self.account.uid)
            if self.account.search:  # CAP_DAC_READ_SEARCH, bit 2 of the effective, permitted and inheritable sets
                header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(4, 4, 4, 0, 0, 0)
                if self.libc.capset(header, sets) != 0:
                    raise OSError(ctypes.get_errno(), "capset")
                self.prctl(47, 2, 2)  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE
        os.chdir(self.folder)
        if LINUX:
            self.prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG
            if os.getppid() != self.parent:
                os._exit(1)


class Adopted:
    """A server that another supervisor started; the part of `Child` that is used."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """None while it lives."""
        with contextlib.suppress(OSError):
            return os.kill(self.pid, 0)
        return 0

    def send_signal(self, number: int) -> None:
        """Send a signal; harmless when it has ended."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, number)


def adopted(place: Place) -> Adopted | None:
    """The server that already runs on the data, if any. Forgets a process id that by now means another program."""
    note = place.data / "postmaster.pid"
    try:
        pid = int(note.read_text().split("\n")[0])
        os.kill(pid, 0)
        if LINUX:
            about = Path(f"/proc/{pid}")
            command = about.joinpath("cmdline").read_bytes().replace(b"\0", b" ")
            ours = about.stat().st_uid == place.account.uid
        else:
            command = subprocess.check_output(["/bin/ps", "-o", "command=", "-p", str(pid)])  # noqa: S603
            ours = True
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    if ours and os.fsencode(f" -D {place.data} ") in command:
        return Adopted(pid)
    if b"postgres" not in command:
        note.unlink()
    return None


def stop(server: Child | Adopted, *, orderly: bool = True) -> None:
    """Stop it within a bounded time: cleanly, or at once when there is nothing left to save."""
    for number, patience_s in STOP if orderly else STOP[1:]:
        if server.poll() is None:
            server.send_signal(number)
        deadline = time.monotonic() + patience_s
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(STEP_S)


def version(place: Place) -> str:
    """The version of the binaries; empty when the account cannot reach them or the base."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = [str(place.programs / "initdb"), "--version"]
        return Child(command, place.account, subprocess.PIPE, place.base).communicate()[0].decode().strip()
    return ""


def private_folder(path: Path, owner: Account, mode: int = 0o700) -> Path:
    """Make the folder, or correct one that is ours. Raises Failure for a link or a folder of somebody else."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise Failure(f"{path} is not a folder of ours ({error.strerror}): remove it") from error
    try:
        if os.fstat(fd).st_uid not in {os.geteuid(), owner.uid}:
            raise Failure(f"{path} belongs to somebody else: remove it")
        if os.geteuid() == 0:
            os.fchown(fd, owner.uid, owner.gid)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)
    return path


def named_user() -> int:
    """A user with a name and without rights."""
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        return 65534


def account_of(folder: Path) -> Account:
    """Whom root's server on the folder runs as: a user and group of its own, whom nobody else is.

    As `nobody` it would belong to every other process that runs as `nobody`: it trusts whoever reaches its socket.
    """
    first = int(digest(folder), 16)
    for number in range(len(ACCOUNTS)):
        identifier = ACCOUNTS[(first + number) % len(ACCOUNTS)]
        try:
            pwd.getpwuid(identifier)
        except KeyError:
            return Account(identifier, identifier)
    raise Failure(f"every user id from {ACCOUNTS.start} to {ACCOUNTS.stop - 1} is taken")


def hand_over(path: Path, account: Account) -> None:
    """Give what is in a folder to the account, as far as it belongs to the folder's owner. Follows no link."""
    former = path.lstat().st_uid
    os.chown(path, account.uid, account.gid, follow_symlinks=False)
    for _, folders, files, fd in os.fwalk(path):
        for name in (*folders, *files):
            if os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid == former:
                os.chown(name, account.uid, account.gid, dir_fd=fd, follow_symlinks=False)


def digest(path: Path) -> str:
    """A short name for a path."""
    import hashlib

    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def remove(base: Path, pattern: str) -> None:
    """Delete what is of no use any more."""
    for path in base.glob(pattern):
        import shutil

        shutil.rmtree(path, ignore_errors=True)


def copied(programs: Path, base: Path) -> Path:
    """The binaries, with all they load, where everybody can read them: made once, of links if possible."""
    import shutil

    def copy(source: str, target: str) -> None:
        mode = Path(source).stat().st_mode
        wanted = 0o755 if mode & 0o100 else 0o644
        if mode & wanted == wanted:
            with contextlib.suppress(OSError):  # another file system
                return os.link(source, target)
        shutil.copyfile(source, target)
        return Path(target).chmod(wanted)

    package, made = programs.parents[1], (programs / "postgres").stat()
    whole = base / f"programs-{digest(programs)}-{made.st_mtime_ns}-{made.st_size}"
    if not whole.exists():
        remove(base, "programs-*")
        part = base / f"programs-part-{os.getpid()}"
        for source in (programs.parent, package.with_name(f"{package.name}.libs")):
            if source.exists():
                shutil.copytree(source, part / source.relative_to(package.parent), copy_function=copy)
        for folder in (part, *(path for path in part.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        part.rename(whole)
    return whole / programs.relative_to(package.parent)


class Supervisor:
    """One run: from the lock to the stopped server."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.programs = programs
        self.note = folder / "where"
        self.served: Path | None = None
        self.asked = False
        self.owners = os.open(folder / "owners.lock", os.O_RDWR | os.O_NOFOLLOW)
        log = folder / "server.log"
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(folder / "server.log.1")
        self.log = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        self.read_from = 0

    def ask(self, *_: object) -> None:
        """Stop soon (signal handler)."""
        self.asked = True

    def gone(self) -> bool:
        """Whether the folder was deleted under us."""
        try:
            same = os.path.samestat((self.folder / "owners.lock").stat(), os.fstat(self.owners))
        except FileNotFoundError:
            return True
        return not same or (self.served is not None and not (self.served / "PG_VERSION").exists())

    def over(self) -> bool:
        """Whether to stop. With no owner left this keeps their lock: a new one waits until the server has stopped."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self.owners, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return self.asked or self.gone()

    def place(self) -> Place:
        """Choose where the server is, and leave word of it for owners and people. Raises Failure."""
        place = self.place_of_root() if os.geteuid() == 0 else self.place_of_user()
        found = version(place)
        with contextlib.suppress(FileNotFoundError):
            made_by = (place.data / "PG_VERSION").read_text().strip()
            if f" {made_by}." not in found:
                raise Failure(f"{place.data} was made by PostgreSQL {made_by}, here is {found or 'none'}: remove it")
        new = self.note.with_name("where.new")
        new.write_text(f"folder: {self.folder}\ndata: {place.data}\nsocket: {place.sockets}\n")
        new.replace(self.note)
        return place

    def place_of_user(self) -> Place:
        """Everything is in the folder."""
        me = Account(os.geteuid(), os.getegid())
        return Place(self.programs, private_folder(self.folder, me), me)

    def place_of_root(self) -> Place:
        """In the folder when a user of its own can get there, if need be with a capability; else in /var/tmp."""
        own = account_of(self.folder)
        visitors = Account(0, own.gid)
        apart = LASTING / f"{NAME}-postgres-{digest(self.folder)}"
        known = self.note.exists() and f"data: {apart / 'data'}\n" in self.note.read_text()
        if not known or not (apart / "data").is_dir():
            private_folder(self.folder, visitors, 0o710)
            for account in (own, own._replace(search=True))[: 2 if LINUX else 1]:
                if version(near := Place(self.programs, self.folder, account)):
                    return near
            private_folder(self.folder, visitors)
            if (self.folder / "data").is_dir():
                raise Failure(
                    f"the user {own.uid} cannot reach {self.folder / 'data'}: allow CAP_DAC_READ_SEARCH, or remove it"
                )
        private_folder(apart, visitors, 0o710)
        if not known:
            remove(apart, "data")  # its folder was deleted
        return Place(copied(self.programs, apart), apart, own)

    def reason(self) -> str:
        """The line that matters in what was written to the server's log by the last program."""
        size = os.fstat(self.log).st_size
        lines = os.pread(self.log, 100_000, max(self.read_from, size - 100_000)).decode(errors="replace").splitlines()
        lines = [line for line in lines if "the database system is" not in line]  # answers to clients
        telling = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "error:", "could not"))]
        return (telling or lines or ["it wrote nothing"])[-1].strip()

    def start(self, place: Place, program: str, *arguments: str) -> Child:
        """Start a program that writes to the server's log."""
        self.read_from = os.fstat(self.log).st_size
        return Child([str(place.programs / program), *arguments], place.account, self.log)

    def initialise(self, place: Place) -> None:
        """Make the data in a folder beside, then move them to their place whole. Raises Failure."""
        builder = place.account
        if builder.uid != os.geteuid():  # initdb wants a user with a name; the group keeps others of that name out
            builder = builder._replace(uid=named_user())
        fresh = private_folder(place.base / f"data-new-{os.getpid()}-{time.time_ns()}", builder)
        initdb = self.start(place._replace(account=builder), "initdb", *INITDB.split(), f"--pgdata={fresh}")
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
        """Run the server until it is not needed. Raises Failure when it keeps dying."""
        self.served = place.data
        for path in (place.data, place.base / "run"):
            if path.is_dir() and path.lstat().st_uid not in {os.geteuid(), place.account.uid}:
                hand_over(path, place.account)  # an earlier release's, or the project was moved
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
    """Write a line to supervisor.log, which is standard error; a full disk is no reason to end."""
    with contextlib.suppress(OSError):
        os.write(2, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} [{os.getpid()}] {line}\n".encode())


def locked(path: Path) -> bool:
    """Hold the lock for the life of this process; false when another supervisor has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(STEP_S)
    return False


def main(folder: Path, programs: Path, *, create: bool) -> int:
    """Supervise until no owner is left; returns the exit code."""
    os.closerange(3, 65536)  # whatever the owner let slip
    with contextlib.suppress(PermissionError):
        os.setsid()
    os.umask(0o077)
    os.chdir("/")
    try:
        if not locked(folder / "supervisor.lock"):
            return 0
        if os.fstat(2).st_size > LOG_BYTES:
            os.ftruncate(2, 0)
        run = Supervisor(folder, programs)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, run.ask)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
            signal.signal(number, lambda _number, _frame: None)  # it has no log to open anew
        place = run.place()
        remove(place.base, "data-new-*")  # of an initdb that was interrupted, and may have gone on for a moment
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
