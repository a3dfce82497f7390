"""Log output: a bounded queue and a writer thread, so that a slow or broken output never blocks callers."""

import asyncio
import atexit
import os
import threading
from collections import deque
from collections.abc import Callable

from app.kernel.telemetry import metrics

_TOGETHER = 32
_MOST_BATCHES = 125
_CLOSE_S = 2.0
_GATHER_S = 0.1
_LOOK_S = 1.0
_POLL_S = 0.02


class Output:
    """Writes lines to stdout or to a file. Counts lines that are dropped or cannot be written.

    The caller that completes a batch formats it, because formatting in the writer thread would block other threads for
    as long. The writer thread formats only incomplete batches.
    """

    def __init__(self, path: str | None) -> None:
        """Open a file, or stdout for None. Raises OSError."""
        self._path = path
        self._fd = self._open()
        self.is_terminal = os.isatty(self._fd)
        self._lines: deque[str | Callable[[], str]] = deque()
        self._batches: deque[tuple[int, bytes]] = deque()
        self._making = threading.Lock()
        self._some = threading.Event()
        self._many = threading.Event()
        self._reopen = self._closing = self._idle = False
        self._reopen_error: OSError | None = None
        self._writing = threading.Lock()
        threading.Thread(target=self._run, name="log output", daemon=True).start()
        atexit.register(self.close)

    def write(self, line: str | Callable[[], str]) -> None:
        """Queue a line, or a function that returns one, for any thread to call. Never blocks, never raises."""
        if len(self._batches) >= _MOST_BATCHES:
            metrics.dropped("logs")
            return
        self._lines.append(line)
        if len(self._lines) >= _TOGETHER and self._making.acquire(blocking=False):
            self._make()
            if len(self._batches) == _MOST_BATCHES // 4:
                self._many.set()
        if self._closing:
            self.close()
        elif self._idle:  # waking a busy thread for each line would cost more than the line
            self._idle = False
            self._some.set()

    def reopen(self) -> None:
        """Reopen the file within a second and before the next line, after logrotate has moved it.

        Signal handlers call this, so it takes no lock: the interrupted code may hold it.
        """
        self._reopen = self._path is not None

    async def reopened(self) -> str | None:
        """Reopen the file, and return what was done; None for stdout. Raises OSError; then the old file is kept."""
        if self._path is None:
            return None
        self.reopen()
        self._some.set()
        while self._reopen:  # noqa: ASYNC110 - a thread resets it
            await asyncio.sleep(_POLL_S)
        if self._reopen_error is not None:
            raise self._reopen_error
        return f"reopened {self._path}"

    def close(self) -> None:
        """Flush within two seconds; later lines are written at once."""
        self._closing = True
        self._some.set()
        self._many.set()
        if self._writing.acquire(timeout=_CLOSE_S):
            while self._lines or self._batches:
                self._write()
            self._writing.release()

    def _open(self) -> int:
        if self._path is None:
            return os.dup(1)
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _run(self) -> None:
        while not self._closing:
            if not self._lines and not self._batches:
                self._some.clear()
                self._idle = True
                if not self._lines and not self._batches:  # check again with the lock
                    self._some.wait(_LOOK_S)
                self._idle = False
            with self._writing:
                if self._reopen:
                    self._replace()
                self._write()
            self._many.wait(_GATHER_S)
            self._many.clear()

    def _replace(self) -> None:
        """Reopen the file. If that fails, keep the old one."""
        try:
            former, self._fd = self._fd, self._open()
            self._reopen_error = None
            os.close(former)
        except OSError as error:
            self._reopen_error = error
        self._reopen = False

    def _make(self) -> None:
        """Format the lines into a batch. The caller holds `_making`; this releases it."""
        batch = [self._lines.popleft() for _ in range(len(self._lines))]
        try:
            made = [line if isinstance(line, str) else _made(line) for line in batch]
            self._batches.append((len(batch), "".join(made).encode(errors="backslashreplace")))
        finally:
            self._making.release()

    def _write(self) -> None:
        """Write all batches. The caller holds `_writing`."""
        if self._lines:
            self._making.acquire()
            self._make()
        batches = [self._batches[at] for at in range(len(self._batches))]
        try:
            left = memoryview(b"".join([made for _, made in batches]))
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:  # a full disk, a closed pipe
            metrics.dropped("logs", sum(count for count, _ in batches))
        for _ in batches:
            self._batches.popleft()


def _made(line: Callable[[], str]) -> str:
    try:
        return line()
    except Exception:  # noqa: BLE001 - one malformed line must not lose the batch
        metrics.dropped("logs")
        return ""
