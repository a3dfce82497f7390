"""The supervisor's log: the same lines in the same place as those of its workers, without their libraries."""

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

_LEVELS = {"debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40}


class Log:
    """Writes text to stderr until a worker has sent its format and output."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._format, self._path, self._least = "console", "", 0
        self._priorities: dict[str, str] = {}

    def configure(self, settings: dict[str, Any]) -> None:
        """Write as a worker does from now on."""
        self._format, self._path, self._least = settings["format"], settings["output"], _LEVELS[settings["level"]]
        self._priorities = settings["priorities"]

    def write(self, level: str, message: str, **fields: object) -> None:
        """Write a line. Never raises: a full disk does not stop a supervisor."""
        if _LEVELS[level] < self._least:
            return
        now = datetime.now(UTC)
        if self._format == "json":
            constant = {"time": f"{now:%Y-%m-%dT%H:%M:%S.%f}+00:00", "level": level, "process": self._process}
            line = json.dumps({**constant, "pid": os.getpid(), "message": message, **fields}, separators=(",", ":"))
        else:
            at = f"{now.astimezone():%H:%M:%S}.{now.microsecond // 1000:03}"
            more = "".join(f" {name}={value}" for name, value in fields.items())
            line = f"{at} {level.upper():<8} {message}{' ' + more if more else ''}"
        with suppress(OSError):
            self._append(f"{self._priorities.get(level.upper(), '')}{line}\n".encode(errors="backslashreplace"))

    def _append(self, line: bytes) -> None:
        if self._path in ("", "stdout"):
            os.write(1 if self._path else 2, line)
            return
        fd = os.open(
            self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640
        )  # logrotate may have moved it
        try:
            os.write(fd, line)
        finally:
            os.close(fd)
