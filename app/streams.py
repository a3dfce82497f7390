"""Robust standard streams: always open, without decoding errors, and with a clear error if stdout fails.

A closed stream is replaced by /dev/null: else the next file or socket would become stdout or stderr. stdin and stdout
are then opened in the wrong direction, so that their use is an error.
"""

import io
import os
import sys
from contextlib import suppress
from typing import cast


class CannotWrite(Exception):
    """Writing to stdout failed. It is not an OSError, so that no library handles it."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to stdout: {error.strerror}")
        self.reader_left = isinstance(error, BrokenPipeError)


class _Stdout(io.FileIO):
    _failed = False

    def write(self, data: "bytes | bytearray | memoryview", /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._failed:  # already reported; the rest of the buffer is dropped
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self._failed = True
            raise CannotWrite(error) from error


class _Stderr(io.FileIO):
    def write(self, data: "bytes | bytearray | memoryview", /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        with suppress(OSError):
            return super().write(data)
        return len(data)


def open_streams() -> None:
    """Replace closed standard streams and set their error handlers. Safe to repeat."""
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # open returns the lowest free number: this fd
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - None if it was closed
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it stays open
    elif sys.stdin is sys.__stdin__:
        cast("io.TextIOWrapper", sys.stdin).reconfigure(errors="backslashreplace")
    if sys.stdout is sys.__stdout__:  # else it was replaced, such as by a test
        sys.stdout = _text(_Stdout(1, "w", closefd=False), sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.__stderr__)


def _text(raw: io.FileIO, former: "io.TextIOWrapper | None") -> io.TextIOWrapper:
    """Return a text stream with the encoding of the former one, which escapes characters that the encoding lacks."""
    encoding, at_once = (former.encoding, former.write_through) if former is not None else ("utf-8", False)
    in_lines = raw.fileno() == 2 or raw.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=in_lines, write_through=at_once
    )
