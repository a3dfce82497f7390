"""Checks of this machine: clock, disks, open files, ports."""

import errno
import os
import resource
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from app.kernel.config import HttpServerSettings, LoggerSettings, OperationsSettings, PostgresSettings
from app.kernel.doctor import Check, Finding, fail, in_thread, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.running import ask, running, url_of
from app.kernel.sockets import resolved

_CLOCK_WARN_S, _CLOCK_FAIL_S = 2.0, 30.0
_TIMESYNC = Path("/run/systemd/timesync")
_FULL, _NEARLY_FULL = 0.98, 0.9
_PLENTY_BYTES = 20_000_000_000
_OTHER_FILES = 60
"""Beside connections: libraries, logs, epoll, spares."""
_LEAST_CONNECTIONS = 100
_ASK_S = 1


async def clock(d: Deployment) -> AsyncIterator[Finding]:
    """Compare the clock with that of the database, and ask systemd whether it is synchronised."""
    synchronise = "timedatectl set-ntp true"
    if await in_thread(lambda: _TIMESYNC.is_dir() and not (_TIMESYNC / "synchronized").exists()):
        yield warn("systemd-timesyncd runs and has not synchronised the clock", synchronise)
    before = time.time()
    (theirs,) = await d.one("SELECT extract(epoch FROM clock_timestamp())::float8")
    after = time.time()
    ahead = (before + after) / 2 - theirs
    distance = abs(ahead) - (after - before) / 2
    if distance > _CLOCK_WARN_S:
        problem = f"the clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of the database"
        yield (fail if distance > _CLOCK_FAIL_S else warn)(problem, synchronise)


async def disk(d: Deployment) -> AsyncIterator[Finding]:
    """Report file systems without space or inodes: data of the embedded server, log, temporary files."""
    places = {"temporary files": Path(tempfile.gettempdir())}
    if PostgresSettings in d.settings.sections and not d[PostgresSettings].host:
        places["data"] = d.data
    if LoggerSettings in d.settings.sections and d[LoggerSettings].output != "stdout":
        places["logs"] = Path(d[LoggerSettings].output).parent
    for what, folder in places.items():
        if what == "logs" and not await in_thread(folder.is_dir):
            yield fail(f"the folder of logger.output, {folder}, does not exist", f"mkdir -p {shlex.quote(str(folder))}")
        for finding in await in_thread(partial(_space, what, folder)):
            yield finding


def _space(what: str, folder: Path) -> list[Finding]:
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    try:
        found = os.statvfs(there)
    except OSError as error:
        return [fail(f"the folder of {what}, {folder}, cannot be read: {error.strerror}", f"ls -ld {folder}")]
    shares = {"space": (found.f_blocks, found.f_bavail), "inodes": (found.f_files, found.f_favail)}
    findings: list[Finding] = []
    for name, (total, free) in shares.items():
        used = 1 - free / total if total else 0.0
        if used < _NEARLY_FULL or (name == "space" and free * found.f_frsize > _PLENTY_BYTES):
            continue
        command = "du -xh -d 1" if name == "space" else "du -x --inodes -d 1"
        problem = f"{used:.0%} of the {name} of the file system of {what} ({folder}) are used"
        biggest = f"{command} {shlex.quote(str(there))} | sort -h | tail  # then remove what is not needed"
        findings.append((fail if used >= _FULL else warn)(problem, biggest))
    return findings


async def open_files(d: Deployment) -> AsyncIterator[Finding]:
    """Compare the limit of open files with what a process may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = d[HttpServerSettings].max_connections
    needed = wanted + d[PostgresSettings].pool_size + _OTHER_FILES
    room = soft - (needed - wanted)
    if soft == resource.RLIM_INFINITY or room >= wanted * 0.8:
        return
    level = fail if room < min(_LEAST_CONNECTIONS, wanted) else warn
    problem = (
        f"{soft} open files are allowed: room for {max(room, 0)} of {wanted} connections (http_server.max_connections)"
    )
    note = "" if hard == resource.RLIM_INFINITY or hard >= needed else "  # as root"
    yield level(problem, f"ulimit -n {needed}{note}")


async def ports(d: Deployment) -> AsyncIterator[Finding]:
    """Report ports that cannot be taken, unless one of our processes has them."""
    both = d[HttpServerSettings].port
    if both and both == d[OperationsSettings].port and d[OperationsSettings].expose == "separate":
        problem = f"http_server.port and operations.port are both {both}, and operations.expose is separate"
        yield fail(problem, f"export OPERATIONS_PORT={both + 1}")
    for section in (HttpServerSettings, OperationsSettings):
        found = d[section]
        if not found.port:
            continue
        error = await in_thread(partial(_taken, found.host, found.port))
        if error is None:
            continue
        variable = f"{section.section.upper()}_PORT"
        match error.errno:
            case errno.EADDRINUSE:
                if await in_thread(partial(_is_ours, d.root, found.host, found.port)):
                    continue
                problem = f"another program listens on port {found.port} of {found.host} ({section.section}.port)"
                find = f"ss -ltnp 'sport = :{found.port}'" if shutil.which("ss") else f"lsof -i :{found.port}"
                yield fail(problem, f"{find}  # then stop it, or set {variable}")
            case errno.EACCES | errno.EPERM:
                yield fail(f"port {found.port} is reserved for root", f"export {variable}={found.port + 8000}")
            case _:
                problem = f"{section.section}.host {found.host} cannot be listened on: {error.strerror}"
                yield fail(problem, f"export {section.section.upper()}_HOST=127.0.0.1")


def _taken(host: str, port: int) -> OSError | None:
    """Return why a port cannot be taken."""
    try:
        family, address = resolved(host, port)
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        return error
    return None


def _is_ours(root: Path, host: str, port: int) -> bool:
    """Return whether one of our processes has the port; those of other users are asked."""
    if any(urlsplit(process.url).port == port for process in running(root)):
        return True
    answer = ask(url_of(host, port), "/health", _ASK_S)
    return answer is not None and "status" in answer[1]


CHECKS = (
    Check("clock", "machine", "The clock agrees with that of the database.", clock),
    Check("disk", "machine", "Disks have space and inodes.", disk),
    Check("open-files", "machine", "The limit of open files suffices.", open_files),
    Check("ports", "machine", "Ports are free, or ours.", ports),
)
