"""A folder as a target of backups."""

import errno
import fcntl
import io
import os
import secrets
import stat
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from app.kernel.backup import BackupInvalid, Stored, TargetUnavailable
from app.kernel.backup.targets import checked, is_name
from app.kernel.errors import Conflict, NotFound

_UPLOAD: Final = ".upload-"
_CHUNK_BYTES: Final = 1024 * 1024
_ATTEMPTS: Final = 5
_FOREIGN: Final = (errno.EACCES, errno.ELOOP, errno.ENXIO, errno.EISDIR)
"""A file that cannot be read although the target can: it is not ours, or a link, a socket, a FIFO, or a folder."""
_WITHOUT_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Folder:
    """Objects are files, which are written beside their place and synchronised before they take it.

    The folder must exist, so that an unmounted disk is not mistaken for an empty one, unless it `is_ours`.
    """

    def __init__(self, root: Path, *, is_ours: bool = False) -> None:
        self.label = str(root)
        self._root, self._is_ours = root, is_ours

    def put(self, name: str, content: Iterable[bytes], *, replace: bool = False) -> int:
        place, size = self._place(name), 0
        with self._told():
            if not replace and os.path.lexists(place):
                raise _exists(name)
            upload, file = self._upload(place.parent)
        try:
            with file:
                for chunk in content:
                    size += len(chunk)
                    with self._told():
                        _write(file, chunk)
                with self._told():
                    os.fsync(file.fileno())
                    _publish(upload, place, name, replace=replace)
        finally:
            with suppress(OSError):
                upload.unlink(missing_ok=True)
                self._drop_empty(place.parent)
        with self._told():
            _sync(place.parent)
        return size

    def get(self, name: str) -> Iterator[bytes]:
        place = self._place(name)
        with self._told():
            self._check_inside(place.parent)
            try:
                file = _opened(place)
            except (FileNotFoundError, NotADirectoryError) as error:
                self._available()
                raise NotFound(f"{name} is not stored in {self.label}") from error
            except OSError as error:
                if error.errno not in _FOREIGN:
                    raise
                raise BackupInvalid(f"{name} in {self.label} cannot be read: {error.strerror}") from error
            with file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk

    def list(self, prefix: str = "") -> Iterator[Stored]:
        if prefix:
            checked(prefix.removesuffix("/"))
        with self._told():
            self._available()
            yield from self._stored(prefix.rpartition("/")[0], prefix)

    def delete(self, names: Iterable[str]) -> None:
        folders: set[Path] = set()
        with self._told():
            self._available()
            for name in names:
                place = self._place(name)
                if place.parent not in folders:
                    self._check_inside(place.parent)
                    folders.add(place.parent)
                with suppress(FileNotFoundError, NotADirectoryError):
                    place.unlink()
            for folder in folders:
                with suppress(FileNotFoundError, NotADirectoryError):
                    _sync(folder)
                self._drop_empty(folder)

    def clean(self, older_than_s: float) -> int:
        count = 0
        with self._told():
            self._available()
            for folder, folders, files in os.walk(self._root):
                above = Path(folder).relative_to(self._root)  # a name is short, so that this is not deep
                folders[:] = [each for each in folders if is_name((above / each).as_posix())]
                for file in files:
                    if file.startswith(_UPLOAD):
                        count += _drop_abandoned(Path(folder, file), older_than_s)
        return count

    def _place(self, name: str) -> Path:
        return self._root / checked(name)

    def _available(self) -> None:
        if self._is_ours:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._root.is_dir():
            raise TargetUnavailable(f"the target {self.label} is no folder: mount it, or create it")

    def _upload(self, folder: Path) -> tuple[Path, io.FileIO]:
        self._available()
        for _ in range(_ATTEMPTS):
            self._create(folder)
            upload = folder / f"{_UPLOAD}{secrets.token_hex(8)}"
            with suppress(FileNotFoundError):  # another process deleted the folder because it was empty
                file = io.FileIO(upload, "xb", opener=_private)
                _lock(file.fileno())
                return upload, file
        raise TargetUnavailable(f"the target {self.label} is changed by others all the time: {folder.name} vanishes")

    def _create(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if path.is_relative_to(self._root) and not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            _sync(path.parent)
        self._check_inside(folder)

    def _check_inside(self, folder: Path) -> None:
        if not folder.resolve().is_relative_to(self._root.resolve()):
            raise TargetUnavailable(f"the target {self.label} has a symbolic link to elsewhere: {folder}")

    def _stored(self, folder: str, prefix: str) -> Iterator[Stored]:
        """Yield the objects in a folder of the target by name: a folder sorts with the `/` that follows it."""
        inside = f"{folder}/" if folder else ""
        try:
            with os.scandir(self._root / folder) as entries:
                each = (f"{inside}{one.name}{'/' if one.is_dir(follow_symlinks=False) else ''}" for one in entries)
                found = sorted(name for name in each if name.startswith(prefix) and is_name(name.rstrip("/")))
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in found:
            if name.endswith("/"):
                yield from self._stored(name.rstrip("/"), prefix)
                continue
            with suppress(FileNotFoundError):
                about = os.lstat(os.path.join(self._root, name))  # noqa: PTH118 - there may be many
                if stat.S_ISREG(about.st_mode):
                    yield Stored(name, about.st_size, datetime.fromtimestamp(about.st_mtime, UTC))

    def _drop_empty(self, folder: Path) -> None:
        while folder != self._root and folder.is_relative_to(self._root):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                return
            folder = folder.parent

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            place = Path(str(error.filename or ""))
            place = place.parent if place.name.startswith(_UPLOAD) else place  # the same problem reads the same again
            where = f" ({place})" if error.filename else ""
            raise TargetUnavailable(f"the target {self.label}: {error.strerror or error}{where}") from error


def _exists(name: str) -> Conflict:
    return Conflict(f"{name} is stored already")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _write(file: io.FileIO, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) :]


def _publish(upload: Path, place: Path, name: str, *, replace: bool) -> None:
    if replace:
        upload.replace(place)
        return
    try:
        os.link(upload, place, follow_symlinks=False)
    except FileExistsError as error:
        raise _exists(name) from error
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        if os.path.lexists(place):
            raise _exists(name) from error
        upload.rename(place)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock what is uploaded. Raises BlockingIOError. Without locks (ENOLCK), age alone tells what was abandoned."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _drop_abandoned(upload: Path, older_than_s: float) -> bool:
    try:
        with _opened(upload) as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < older_than_s:
                return False
            _lock(file.fileno())
            upload.unlink()
            return True
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.ENOENT, *_FOREIGN):
            raise
        return False


def _opened(path: Path) -> io.FileIO:
    """Open a regular file. Raises OSError, for a FIFO, which would never be read to its end, or a folder, as well."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return io.FileIO(descriptor)
    os.close(descriptor)
    raise OSError(errno.ENXIO, "it is no regular file", str(path))
