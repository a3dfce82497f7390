"""Where a drill restores: a folder that goes away with it, whatever ends it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.kernel.backup import Backup
from app.kernel.db.devserver.place import short_folders
from app.kernel.errors import Unavailable
from app.kernel.product import NAME

_PREFIX, _KEPT = f"{NAME}-drill-", f"{NAME}-kept-drill-"
_SPARE_BYTES = 2 * 2**30  # WAL that is fetched ahead, and what the server writes


def room_for(size_bytes: int) -> int:
    """Return how many bytes must be free for a drill of a backup of this size."""
    return size_bytes + _SPARE_BYTES


@contextmanager
def scratch_folder(parent: Path, backup: Backup, *, keep: bool) -> Generator[Path]:
    """Make a folder for a backup, and remove it afterwards; remove those of drills that were killed.

    Raises Unavailable if the backup does not fit.
    """
    try:
        parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        for left in parent.glob(f"{_PREFIX}*"):
            _remove_if_unused(left)
        _check_space(parent, backup)
        made = Path(tempfile.mkdtemp(prefix=_KEPT if keep else _PREFIX, dir=parent))
    except OSError as error:
        raise Unavailable(f"the drill cannot use {parent} (backup.scratch): {error.strerror}") from error
    lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made.chmod(0o711)  # the account of the server passes through
        yield made
    finally:
        if not keep:
            shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _check_space(folder: Path, backup: Backup) -> None:
    needed, free = room_for(backup.size_bytes), shutil.disk_usage(folder).free
    if free < needed:
        message = f"{folder} has {free / 2**30:.1f} GiB free, and the drill needs {needed / 2**30:.1f} GiB"
        raise Unavailable(message, hint=f"{NAME} config explain backup.scratch")


def _remove_if_unused(folder: Path) -> None:
    """Remove the folder of a drill that was killed: nobody holds its lock."""
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_uid == os.geteuid():
                for each in (folder, *short_folders(folder / "data")):
                    shutil.rmtree(each, ignore_errors=True)
        finally:
            os.close(lock)
