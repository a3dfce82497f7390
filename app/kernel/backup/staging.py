"""Restores beside the place of a data folder, and takes the place at the end: until then nothing there changes."""

import ctypes
import errno
import fcntl
import os
import pwd
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.kernel.db.devserver.child import LINUX, Account
from app.kernel.db.devserver.place import Failure, account_of, hand_over, private_folder
from app.kernel.errors import Conflict, NotFound

SUFFIX = ".restoring"
_LOCK, _DATA = "lock", "data"
_ENDS_WITHIN_S = 30.0
_POLL_S = 0.1
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True, slots=True)
class Staging:
    """`data` is where to restore; `finish` moves it to its place."""

    place: Path
    data: Path
    replaces: bool
    account: Account

    def finish(self) -> Path | None:
        """Move the data folder to its place; return where the former one is now. Raises Conflict if one is in use."""
        former, data = None, self.data
        _refuse(self.place, replaces=self.replaces)
        if os.geteuid() == 0 and self.account.uid:
            hand_over(self.data, self.account)
        if self.place.exists() and any(self.place.iterdir()):
            former = self.place.with_name(f"{self.place.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
            data = data.rename(former)  # out of the folder that the next restore empties
            try:
                _exchange(data, self.place)
            except OSError:  # the file system cannot; killed in between, the place is empty
                data = data.rename(self.data)
                self.place.rename(former)
                data.rename(self.place)
        else:
            data.rename(self.place)
        for folder in (self.place, self.place.parent):
            _sync(folder)
        return former


@contextmanager
def staged(place: Path, *, replaces: bool, account: Account | None = None) -> Generator[Staging]:
    """Prepare a folder beside `place`, and delete it at the end, with whatever is still in it.

    What a killed restore has left there is deleted. Raises Conflict if `place` is not empty, unless it is replaced, if
    a server runs on it, or another restore to it; NotFound without a folder to put it in.
    """
    place = Path(os.path.abspath(place))  # noqa: PTH100 - a link to the place is replaced, not what it leads to
    _refuse(place, replaces=replaces)
    account = account or _owner(place)
    folder = place.with_name(place.name + SUFFIX)
    with _locked(folder, account):
        try:
            yield Staging(place, folder / _DATA, replaces, account)
        finally:
            _remove(folder)


def running_on(folder: Path) -> int | None:
    """Return the process id of the server that runs on a data folder, or None."""
    try:
        pid = abs(int((folder / "postmaster.pid").read_text().split("\n")[0]))  # negative: a single-user server
    except (OSError, ValueError):
        return None
    try:
        os.kill(pid, 0)
        return pid if not LINUX or Path(f"/proc/{pid}/cwd").samefile(folder) else None
    except PermissionError:  # the process of another user, which is taken for a server
        return pid
    except OSError:
        return None


def _refuse(place: Path, *, replaces: bool) -> None:
    """Raise Conflict or NotFound if a data folder cannot take the place."""
    if not place.parent.is_dir():
        raise NotFound(f"there is no folder {place.parent}: create it")
    if not os.path.lexists(place):
        return
    if not place.is_dir() or place.is_symlink() or place.is_mount():
        raise Conflict(f"{place} is no folder of its own, but a file, a link or a mount point: name a folder in it")
    if any(place.iterdir()) and not replaces:
        raise Conflict(f"{place} is not empty: name another folder, or replace it with --replace")
    if pid := running_on(place):
        raise Conflict(f"a PostgreSQL server runs on {place} (process {pid}): stop it first")
    if replaces and any(place.iterdir()) and not (place / "PG_VERSION").exists():
        raise Conflict(f"{place} is no data folder of PostgreSQL: name another one")


def _owner(place: Path) -> Account:
    """Return the account of the files: for root, that of the folder to replace, of its parent, or of PostgreSQL."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    for path in (place, place.parent):
        with suppress(FileNotFoundError):
            if (found := path.stat()).st_uid:
                return Account(found.st_uid, found.st_gid)
    with suppress(KeyError):
        found = pwd.getpwnam("postgres")
        return Account(found.pw_uid, found.pw_gid)
    return account_of(place)


@contextmanager
def _locked(folder: Path, account: Account) -> Generator[None]:
    if os.path.lexists(folder) and (
        not folder.is_dir() or folder.is_symlink() or {path.name for path in folder.iterdir()} - {_LOCK, _DATA}
    ):
        raise Conflict(f"{folder} is in the way, and was not made by a restore: move it")
    try:
        private_folder(folder, account)
    except Failure as error:
        raise Conflict(str(error)) from error
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another restore runs in {folder}: wait for it, or stop it") from None
        _remove_data(folder / _DATA)
        yield
    finally:
        os.close(descriptor)


def _remove_data(data: Path) -> None:
    """Delete what a killed restore has left, once its server, which dies with it, has ended."""
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while pid := running_on(data):
        if time.monotonic() > deadline:
            raise Conflict(f"a PostgreSQL server runs on {data} (process {pid}): stop it first")
        time.sleep(_POLL_S)
    if data.exists():
        shutil.rmtree(data)


def _remove(folder: Path) -> None:
    with suppress(OSError, Conflict):
        _remove_data(folder / _DATA)
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders at once (Linux, renameat2(2)). Raises OSError where that is not possible."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as error:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
