"""Checks of the embedded server's folder, which do not start it."""

import os
import shlex
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

from app.kernel.config import PostgresSettings
from app.kernel.db.devserver.embedded import embedded_binaries, running_server
from app.kernel.doctor import Check, Finding, NotChecked, fail, in_thread, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.product import NAME

_PRIVATE = 0o700
_OPEN_TO_OTHERS = 0o077


async def embedded(d: Deployment) -> AsyncIterator[Finding]:
    """Report what keeps the embedded server from starting."""
    if d[PostgresSettings].host:
        raise NotChecked("postgres.host names a server, so none is embedded")
    programs = embedded_binaries()
    if programs is None:
        if d.is_published:  # elsewhere, the settings are invalid
            yield fail("no server is configured, and the embedded one is not installed", "export POSTGRES_HOST=NAME")
        return
    folder = d.data / "postgres"
    try:
        found = await in_thread(lambda: list(_folder(folder, programs)))
    except PermissionError:
        found = [fail(f"this user may not read {folder}", f"ls -ld {shlex.quote(str(folder))}")]
    for finding in found:
        yield finding


def _folder(folder: Path, programs: Path) -> Iterator[Finding]:
    if not folder.exists():
        return
    again = f"rm -r {shlex.quote(str(folder))}  # starts over, without its data"
    if (owner := folder.stat().st_uid) != os.geteuid():
        yield fail(
            f"{folder} belongs to the user {owner}, and this is {os.geteuid()}", f"sudo -u '#{owner}' {NAME} doctor"
        )
        return
    data = _data(folder)
    if not (data / "PG_VERSION").exists():
        return
    made_by, installed = (data / "PG_VERSION").read_text().strip(), _version(programs)
    if installed and installed != made_by:
        yield fail(f"{data} was created by PostgreSQL {made_by}, installed is {installed}", again)
    if (mode := stat.S_IMODE(data.stat().st_mode)) & _OPEN_TO_OTHERS:

        async def repair() -> None:
            await in_thread(lambda: data.chmod(_PRIVATE))

        yield fail(f"PostgreSQL refuses {data}: other users may read it (mode {mode:o})", _chmod(data), repair)
    if running_server(folder) is None and (pid := _foreign(data)):
        problem = f"{data}/postmaster.pid names the process {pid}, another PostgreSQL: ours does not start"
        yield warn(problem, f"rm {shlex.quote(str(data / 'postmaster.pid'))}  # if `ps {pid}` shows other data")


def _data(folder: Path) -> Path:
    """Return the data folder that the supervisor recorded."""
    with suppress(OSError, ValueError):
        found = dict(line.split(": ", 1) for line in (folder / "where").read_text().splitlines())
        if found.get("folder") == str(folder.resolve()):
            return Path(found["data"])
    return folder / "data"


def _version(programs: Path) -> str:
    """Return the major version of the binaries; empty if they do not run."""
    with suppress(OSError, subprocess.SubprocessError):
        command = [str(programs / "postgres"), "--version"]
        said = subprocess.run(command, capture_output=True, timeout=3, check=True, text=True).stdout  # noqa: S603
        return said.split()[-1].partition(".")[0]
    return ""


def _foreign(data: Path) -> int:
    """Return the id of another PostgreSQL's process in the pid file, or 0."""
    with suppress(OSError, ValueError):
        pid = int((data / "postmaster.pid").read_text().split("\n")[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        if b"postgres" in command and os.fsencode(f" -D {data} ") not in command:
            return pid
    return 0


def _chmod(path: Path) -> str:
    return f"chmod {_PRIVATE:o} {shlex.quote(str(path))}"


CHECKS = (Check("embedded", "postgresql", "The embedded server can start.", embedded),)
