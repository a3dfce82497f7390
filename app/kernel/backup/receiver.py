"""pg_receivewal as a child, which writes WAL into a spool: a disposable folder of bounded size."""

import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from loguru import logger
from psycopg.conninfo import make_conninfo

from app.kernel.backup.child import start
from app.kernel.backup.programs import connection_of
from app.kernel.backup.timelines import WalFile, wal_file
from app.kernel.errors import Unavailable

SPOOL_BYTES = 256 * 1024 * 1024
"""Size of the spool at which receiving ends until that is stored. WAL waits on the server meanwhile."""
_LOOK_S = 0.2
_LINES, _LINE_BYTES = 20, 1000
_END_S = 5.0


class Receiver:
    """A running pg_receivewal, and the files that it has written."""

    def __init__(self, program: Path, conninfo: str, name: str, spool: Path, begin: str, segment_bytes: int) -> None:
        """Empty the spool, and begin with the segment `begin`. Raises OSError."""
        self.begin, self._spool, self._segment_bytes = begin, spool, segment_bytes
        self.is_full = False
        """Whether it was ended because the spool is full."""
        self._most = max(2, SPOOL_BYTES // segment_bytes)
        self._lines: deque[str] = deque(maxlen=_LINES)
        for path in spool.iterdir():
            path.unlink()
        (spool / f"{begin}.partial").touch(0o600)
        parameters, secret = connection_of(conninfo)
        where = make_conninfo("", **{**parameters, "application_name": name})
        options = ["--no-loop", "--no-sync", "--no-password", "--status-interval=1", "-D", str(spool)]
        self._child = start([str(program), *options, "--dbname", where], secret)
        self._watcher = Thread(target=self._watch, name="wal-receiver", daemon=True)
        self._watcher.start()

    def has_ended(self) -> bool:
        """Return whether it runs no more."""
        return self._child.poll() is not None

    def reason(self) -> str:
        """Return what it said last."""
        self._watcher.join(_END_S)
        if self.is_full:
            return f"{self._spool} is full: WAL comes faster than the target takes it"
        said = " ".join(" ".join(self._lines).replace("pg_receivewal: ", "").split())
        return said or f"pg_receivewal ended with {self._child.returncode}"

    def is_removed(self) -> bool:
        """Return whether it ended because the server has not the segment any more with which it was to begin."""
        # the language of the message is the server's; what pg_receivewal says of a file here has its name in quotes
        return any(re.search(rf'(?<![/"]){self.begin}(?![."])', line) for line in self._lines)

    def files(self) -> list[tuple[Path, WalFile]]:
        """Return the files in the spool: histories first, then segments in the order of their writing."""
        found = [(path, wal_file(path.name, self._segment_bytes)) for path in self._spool.iterdir()]
        known = [(path, file) for path, file in found if file is not None]
        return sorted(known, key=lambda each: (each[1].number is not None, each[1].timeline, each[1].number or 0))

    def end(self) -> None:
        """End it. Safe to repeat."""
        for number in (signal.SIGINT, signal.SIGKILL):
            self._child.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(_END_S)
                break
        self._watcher.join(_END_S)

    def _watch(self) -> None:
        """Take what it says, and end it when the spool is full."""
        assert self._child.stderr is not None
        with self._child.stderr as said:
            while True:
                if select.select([said], [], [], _LOOK_S)[0]:
                    if not (text := os.read(said.fileno(), 65536)):
                        return
                    for line in text.decode(errors="replace").splitlines():
                        logger.debug("{}", line[:_LINE_BYTES])
                        self._lines.append(line[:_LINE_BYTES])
                elif not self.is_full and sum(1 for _ in self._spool.iterdir()) > self._most:
                    self.is_full = True
                    self._child.terminate()


@contextmanager
def spool(folder: Path) -> Generator[Path]:
    """Yield a private folder that no other process uses. Removed at the end. Raises Unavailable."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise Unavailable(f"WAL cannot be received into {folder}: {error.strerror}") from None
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise Unavailable(f"{folder} belongs to another user; set backup.scratch to a folder of your own")
        os.fchmod(handle, 0o700)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Unavailable(f"another process receives WAL into {folder}") from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)
