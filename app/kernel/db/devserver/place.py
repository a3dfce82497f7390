"""Folders and account of the embedded PostgreSQL. Imports only the standard library."""

import contextlib
import hashlib
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from app.kernel.db.devserver.child import LINUX, Account, Adopted, Child
from app.kernel.product import NAME

ACCOUNTS = range(60578, 61184)  # ids not assigned by distributions or systemd, and mapped in containers
SHORT, LASTING = Path("/tmp"), Path("/var/tmp")  # noqa: S108 - the owner of our folders there is checked


class Failure(Exception):
    """The server cannot be started; the message is one line."""


class Place(NamedTuple):
    """Folders and account of PostgreSQL. `base` has the folders `data` and `run`."""

    programs: Path
    base: Path
    account: Account

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.base / "data"

    @property
    def sockets(self) -> Path:
        """The folder of the socket: below the base, or in /tmp when the path is too long."""
        return socket_folder(self.base, self.account)


def socket_folder(base: Path, account: Account) -> Path:
    """Return the folder `run` below the base, or one in /tmp when the path of a socket in it would be too long."""
    inside = base / "run"
    if len(os.fsencode(inside / ".s.PGSQL.5432")) < 100:
        return inside
    return SHORT / f"{NAME}-postgres-{digest(base)}-{account.uid}"


def short_folders(base: Path) -> list[Path]:
    """Return the folders in /tmp that were made for a base, whose account may not be known any more."""
    return [*SHORT.glob(f"{NAME}-postgres-{digest(base)}-*")]


def adopted(place: Place) -> Adopted | None:
    """Return the server that runs on the data, or None. Removes the pid file when its id is another program's."""
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


def version(place: Place) -> str:
    """Return the version of the binaries; empty when the account cannot reach them or the base."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = [str(place.programs / "initdb"), "--version"]
        return Child(command, place.account, subprocess.PIPE, place.base).communicate()[0].decode().strip()
    return ""


def private_folder(path: Path, owner: Account, mode: int = 0o700) -> Path:
    """Create a folder, or correct its mode. Raises Failure for a link or the folder of another user."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise Failure(f"{path} must be a folder ({error.strerror}): remove it") from error
    try:
        if os.fstat(fd).st_uid not in {os.geteuid(), owner.uid}:
            raise Failure(f"{path} belongs to another user: remove it")
        if os.geteuid() == 0:
            os.fchown(fd, owner.uid, owner.gid)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)
    return path


def account_of(folder: Path) -> Account:
    """Return the account of root's server on the folder: its own user and group.

    The server trusts every process that reaches its socket, so it must not run as `nobody`.
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
    """Give a folder, and what its owner or this user has in it, to the account. Follows no links."""
    former = {path.lstat().st_uid, os.geteuid()}
    os.chown(path, account.uid, account.gid, follow_symlinks=False)
    for _, folders, files, fd in os.fwalk(path):
        for name in (*folders, *files):
            if os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid in former:
                os.chown(name, account.uid, account.gid, dir_fd=fd, follow_symlinks=False)


def digest(path: Path) -> str:
    """Return a short name for a path."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def remove(base: Path, pattern: str) -> None:
    """Delete unused folders."""
    for path in base.glob(pattern):
        shutil.rmtree(path, ignore_errors=True)


def copied(programs: Path, base: Path) -> Path:
    """Return a readable copy of the binaries and their libraries, made once, of hard links if possible."""

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


def find_place(folder: Path, programs: Path) -> Place:
    """Choose the folders of the server, and record them. Raises Failure."""
    note = folder / "where"
    if os.geteuid() == 0:
        place = _place_of_root(folder, programs, note.read_text() if note.exists() else "")
    else:
        me = Account(os.geteuid(), os.getegid())
        place = Place(programs, private_folder(folder, me), me)
    found = version(place)
    with contextlib.suppress(FileNotFoundError):
        made_by = (place.data / "PG_VERSION").read_text().strip()
        if f" {made_by}." not in found:
            raise Failure(
                f"{place.data} was created by PostgreSQL {made_by}, installed is {found or 'none'}: remove it"
            )
    new = note.with_name("where.new")
    new.write_text(f"folder: {folder}\ndata: {place.data}\nsocket: {place.sockets}\n")
    new.replace(note)
    return place


def _place_of_root(folder: Path, programs: Path, note: str) -> Place:
    """Return a place in the folder if the account can reach it, if necessary with a capability; else in /var/tmp."""
    own = account_of(folder)
    visitors = Account(0, own.gid)
    apart = LASTING / f"{NAME}-postgres-{digest(folder)}"
    known = f"data: {apart / 'data'}\n" in note
    if not known or not (apart / "data").is_dir():
        private_folder(folder, visitors, 0o710)
        for account in (own, own._replace(search=True))[: 2 if LINUX else 1]:
            if version(near := Place(programs, folder, account)):
                return near
        private_folder(folder, visitors)
        if (folder / "data").is_dir():
            raise Failure(f"the user {own.uid} cannot reach {folder / 'data'}: allow CAP_DAC_READ_SEARCH, or remove it")
    private_folder(apart, visitors, 0o710)
    if not known:
        remove(apart, "data")  # its folder was deleted
    return Place(copied(programs, apart), apart, own)
