"""The banner of `run-all-in-one` on a terminal: what runs, where, with which data, and what to do first."""

import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from app.kernel.config import PostgresSettings
from app.kernel.db.server import server
from app.kernel.process import Process
from app.kernel.product import NAME, VERSION
from app.modules import modules

_WIDTH = 79
_TITLE = "  {:<11} "
_ROOM = _WIDTH - len(_TITLE.format(""))


async def banner(p: Process, *, colour: bool) -> str:
    """Return the banner of a process that is about to be ready: at most 12 lines of 79 columns."""
    took_s = (datetime.now(UTC) - p.started_at).total_seconds()
    bold, green, plain = ("\x1b[1m", "\x1b[32m", "\x1b[0m") if colour else ("", "", "")
    lines = [f"  {bold}{NAME} {VERSION}{plain} {green}ready{plain} in {took_s:.1f} s", ""]
    async for title, text in _lines(p):
        first, *others = text.splitlines()
        lines.append(f"{bold}{_TITLE.format(title)}{plain}{first}")
        lines += [_TITLE.format("") + other for other in others]
    return "\n".join(["", *lines, "", ""])


async def _lines(p: Process) -> AsyncIterator[tuple[str, str]]:
    apis = " and ".join(module.name for module in modules() if module.process)
    yield "Runs", f"{apis} API, cron manager, event consumer"
    urls = {name: label.rpartition(" ")[2] for name, label in p.labels.items()}
    yield "API", urls["http"]
    if any(module.console for module in modules()):
        yield "Console", f"{urls['http']}/console"
    yield "Reference", f"{urls.get('operations', urls['http'])}/docs"
    is_embedded = not p.settings[PostgresSettings].host
    yield "Data", _embedded(p.data / "postgres") if is_embedded else await _configured(p)
    for module in modules():
        if (line := await module.banner_line(p, called_as())) is not None:
            yield line
    yield "Stop", "Ctrl-C finishes what runs, then stops" + (" PostgreSQL too" if is_embedded else "")


def _embedded(folder: Path) -> str:
    shown = str(folder)
    for beginning, instead in ((f"{Path.cwd()}{os.sep}", ""), (f"{Path.home()}{os.sep}", f"~{os.sep}")):
        if shown.startswith(beginning):
            shown = instead + shown.removeprefix(beginning)
            break
    return f"{_end(shown, _ROOM - 23)} (embedded PostgreSQL)"


async def _configured(p: Process) -> str:
    settings = p.settings[PostgresSettings]
    return _end(f"PostgreSQL at {(await p.use(server)).label}, database {settings.db}", _ROOM)


def _end(text: str, room: int) -> str:
    return text if len(text) <= room else f"\N{HORIZONTAL ELLIPSIS}{text[-room + 1 :]}"


def called_as() -> str:
    """Return how the command was called, to call it again from the same folder."""
    words = sys.orig_argv
    return f"{words[0]} -m {NAME}" if words[1:3] == ["-m", NAME] else NAME
