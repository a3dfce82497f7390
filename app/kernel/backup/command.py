"""Runs a command of this program for a job: a child that ends with this process, and does not slow it."""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from app.kernel.backup.child import command_of
from app.kernel.product import NAME
from app.kernel.queue import NeverRetry, RetryAfter

_FOLDER: Final = str(Path(__file__).resolve().parents[3])
_NICE: Final = 10
_OUTPUT_BYTES, _PIECE_BYTES = 256 * 1024, 64 * 1024
_STOP_S: Final = 30.0
_USAGE, _TRY_AGAIN, _MISCONFIGURED = 2, 75, 78
_TRY_AGAIN_S: Final = 1800.0


class CommandFailed(Exception):
    """The command failed; the message is its last line."""


async def run_command(*arguments: str) -> Any:
    """Run a command of this program; return the JSON that it prints. When cancelled, the command stops first.

    Raises CommandFailed, RetryAfter if it is to be tried again, NeverRetry if that would not help.
    """
    path = os.pathsep.join(filter(None, (_FOLDER, os.environ.get("PYTHONPATH"))))
    child = await asyncio.create_subprocess_exec(
        *command_of([sys.executable, "-m", NAME, *arguments], nice=_NICE),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"},
    )
    try:
        output, errors, status = await asyncio.gather(_end(child.stdout), _end(child.stderr), child.wait())
    finally:
        await asyncio.shield(_stop(child))
    if status == 0:
        with suppress(ValueError):
            return json.loads(output)
        return None
    message = _message(errors) or f"{NAME} {' '.join(arguments)} ended with the status {status}"
    if status == _TRY_AGAIN:
        raise RetryAfter(_TRY_AGAIN_S, message)
    if status in (_USAGE, _MISCONFIGURED):
        raise NeverRetry(message)
    raise CommandFailed(message)


async def _end(stream: asyncio.StreamReader | None) -> str:
    """Read to the end; return the last bytes."""
    kept = bytearray()
    while stream is not None and (piece := await stream.read(_PIECE_BYTES)):
        kept += piece
        del kept[:-_OUTPUT_BYTES]
    return kept.decode(errors="replace")


async def _stop(child: asyncio.subprocess.Process) -> None:
    """Stop the child and what it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.returncode is not None:
            return
        with suppress(ProcessLookupError):
            child.terminate() if number == signal.SIGTERM else os.killpg(child.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await child.wait()


def _message(errors: str) -> str:
    """Return the line that says why the command failed."""
    lines = [line for line in errors.splitlines() if line.strip()]
    said = [line.removeprefix(f"{NAME}: ") for line in lines if line.startswith(f"{NAME}: ")]
    return (said or lines or [""])[-1][:1000]
