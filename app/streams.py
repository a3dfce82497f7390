"""The standard streams of a command: never closed, never undecodable, and stdout says what it could not take.

A closed one is replaced by /dev/null at once: else the next file or socket would become stdout or stderr, and be
written to. stdin and stdout are then opened the wrong way round, so that using them is an error; stderr takes
everything.
"""

import io
import os
import sys
from contextlib import suppress
from typing import cast


class CannotWrite(Exception):
    """stdout does not take what is written to it. No OSError: those that are in between would handle it their way."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to stdout: {error.strerror}")
        self.reader_left = isinstance(error, BrokenPipeError)


class _Stdout(io.FileIO):
    _failed = False

    def write(self, data: "bytes | bytearray | memoryview", /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._failed:  # said already; what the buffer still holds goes nowhere
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
    """Make the standard streams usable, whatever this process was started with. Safe to repeat."""
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # takes the lowest number that is free: this one
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - so it is when it was closed
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it stays open
    elif sys.stdin is sys.__stdin__:
        cast("io.TextIOWrapper", sys.stdin).reconfigure(errors="backslashreplace")
    if sys.stdout is sys.__stdout__:  # else somebody listens in, such as a test
        sys.stdout = _text(_Stdout(1, "w", closefd=False), sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.__stderr__)


def _text(raw: io.FileIO, former: "io.TextIOWrapper | None") -> io.TextIOWrapper:
    """Return a text stream with the encoding of the former one; what that lacks is written as an escape sequence."""
    encoding, at_once = (former.encoding, former.write_through) if former is not None else ("utf-8", False)
    in_lines = raw.fileno() == 2 or raw.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=in_lines, write_through=at_once
    )
