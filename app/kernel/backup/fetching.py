"""Gives WAL to a server that recovers, through restore_command, some segments ahead of it."""

import errno
import os
import shlex
import shutil
import socket
import sys
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from app.kernel.backup import BackupInvalid, TargetUnavailable
from app.kernel.backup import fetch_wal as client
from app.kernel.backup.engine import Advance
from app.kernel.backup.timelines import Stretch, WalFile, is_on_way, segment_name, timeline_at, wal_file
from app.kernel.backup.wal import WalArchive
from app.kernel.errors import Unavailable

SPOOL = "wal-fetched"
"""Folder in the data folder, where fetched files wait: the server renames them, it does not copy."""
_AHEAD_BYTES, _AT_ONCE = 128 * 2**20, 4
_PATIENCE_S, _PAUSE_S, _POLL_S = 60.0, 0.2, 0.2
_ONE_LINE, _SOCKET_BYTES = 256, 100
_PROGRAM = "fetch_wal.py"


@contextmanager
def fetching(
    archive: WalArchive,
    folder: Path,
    stretches: Sequence[Stretch],
    begin: int,
    advance: Advance = lambda _: None,
    *,
    end: int | None = None,
) -> Generator[str]:
    """Serve WAL to the server that recovers on a data folder; yield its restore_command.

    `stretches` is the way to its timeline. From the position `begin` on, a segment that is not stored although a later
    one is, is missing: an error, not the end of WAL. From the segment after `end` on, nothing counts as stored. A
    target that does not answer is asked again for a minute.
    Closing raises TargetUnavailable or BackupInvalid if WAL could not be fetched.
    """
    server = _Server(archive, folder / SPOOL, stretches, begin, advance, end)
    try:
        server.start()
        yield _restore_command()
    finally:
        server.close()
        if server.problem is not None:
            raise full_disk(folder, server.problem) or server.problem


def full_disk(folder: Path, error: BaseException | None) -> Unavailable | None:
    """Return what to raise for an error of a full disk; None for any other."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable(f"the disk of {folder.parent} is full: free some space")
    return None


def _restore_command() -> str:
    """Return a command whose status is 1 for nothing but WAL that is not stored: that ends recovery, successfully."""
    words = (sys.executable, "-I", "-S", f"{SPOOL}/{_PROGRAM}", SPOOL)
    command = " ".join(shlex.quote(word) for word in words).replace("%", "%%")
    return f"{command} %f %p; case $? in 0) exit 0;; {client.NOT_STORED_STATUS}) exit 1;; *) exit 255;; esac"


class _Server:
    def __init__(
        self,
        archive: WalArchive,
        spool: Path,
        stretches: Sequence[Stretch],
        begin: int,
        advance: Advance,
        end: int | None,
    ) -> None:
        self.problem: Exception | None = None
        self._archive, self._spool, self._stretches, self._begin = archive, spool, stretches, begin
        self._advance = advance
        self._size = archive.segment_bytes
        self._window = max(2, min(16, _AHEAD_BYTES // self._size))
        stored = [wal.file for wal in archive.segments() if is_on_way(wal.file, stretches, self._size)]
        self._last = max((file.number or 0 for file in stored), default=-1)
        self._end = None if end is None else -(-end // self._size)
        if self._end is not None:
            self._last = min(self._last, self._end - 1)
        self._ahead: dict[str, Future[bool]] = {}
        self._pool = ThreadPoolExecutor(_AT_ONCE, "wal")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="wal-server", daemon=True)

    def start(self) -> None:
        shutil.rmtree(self._spool, ignore_errors=True)
        self._spool.mkdir(mode=0o700)
        self._socket = socket.socket(socket.AF_UNIX)
        path = self._spool / client.SOCKET
        with _opened(self._spool) as descriptor:  # the path of a socket has a limit, which /proc gets round
            is_long = len(os.fsencode(path)) > _SOCKET_BYTES
            self._socket.bind(f"/proc/self/fd/{descriptor}/{path.name}" if is_long else str(path))
        self._socket.listen(8)
        self._socket.settimeout(_POLL_S)
        owner = self._spool.parent.stat()
        shutil.copyfile(client.__file__, self._spool / _PROGRAM)  # the server's account may not reach ours
        for each in (self._spool, path, self._spool / _PROGRAM):
            self._give(each, owner)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        with suppress(AttributeError):
            self._socket.close()
        shutil.rmtree(self._spool, ignore_errors=True)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            with connection, suppress(OSError):
                connection.settimeout(5)
                connection.sendall(self._answer(connection.makefile("rb").readline(_ONE_LINE).decode().strip()))

    def _answer(self, name: str) -> bytes:
        file = wal_file(name, self._size)
        if file is None or file.is_partial or (file.number or 0) >= (self._end or sys.maxsize):
            return client.NOT_STORED
        try:
            if not self._wait(name):
                self._refuse_missing(file)
                return client.NOT_STORED
            if file.number is not None:
                self._advance(self._size)
                self._look_ahead(file.number)
            self._give(self._spool / name, self._spool.stat())
        except Exception as error:  # noqa: BLE001 - raised where the server is closed
            self.problem = self.problem or error
            return client.FAILED
        return client.FOUND

    def _wait(self, name: str) -> bool:
        fetched = self._ahead.pop(name, None) or self._pool.submit(self._fetch, name)
        return fetched.result()

    def _look_ahead(self, number: int) -> None:
        wanted = [
            segment_name(timeline_at(self._stretches, n, self._size), n * self._size, self._size)
            for n in range(number + 1, min(number + self._window, self._last) + 1)
        ]
        for name in [name for name in self._ahead if name not in wanted]:  # of a recovery that began anew
            self._ahead.pop(name).cancel()
        for name in wanted:
            if name not in self._ahead:
                self._ahead[name] = self._pool.submit(self._fetch, name)

    def _fetch(self, name: str) -> bool:
        deadline, pause_s = time.monotonic() + _PATIENCE_S, _PAUSE_S
        while True:
            try:
                return self._archive.get(name, self._spool / name)
            except TargetUnavailable:
                if self._stopping.is_set() or time.monotonic() + pause_s > deadline:
                    raise
                self._stopping.wait(pause_s)
                pause_s = min(pause_s * 2, 5.0)

    def _refuse_missing(self, file: WalFile) -> None:
        size = self._size
        if is_on_way(file, self._stretches, size) and self._begin <= file.start(size) < self._last * size:
            raise BackupInvalid(f"the WAL segment {file.name} is not stored, although later ones are")

    def _give(self, path: Path, owner: os.stat_result) -> None:
        if os.geteuid() == 0:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)  # the folder is that account's


@contextmanager
def _opened(folder: Path) -> Generator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
