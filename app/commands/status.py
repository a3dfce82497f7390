"""`app status`."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.once import run_once
from app.kernel.cli import Json, print_json, single
from app.kernel.product import NAME

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.text import Text

    from app.kernel.actions.columns import Columns
    from app.kernel.process import Process
    from app.modules.platform.overview import DeploymentOverview

_EVERY_S = 2.0
_LINES = 5
_NEEDS = 5


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every two seconds, until Ctrl-C.")] = False,
    web: Annotated[bool, typer.Option("--web", help="Print the address of this in the console.")] = False,
    as_json: Json = False,
) -> None:
    """Show on one screen whether the deployment is well, and if not, what to do.

    What needs attention comes first, with the command that mends it; then traffic, processes, queues, schedules and
    errors. With --watch and --json, each line is one document. Exit status: 0 (nothing needs attention) or 1.

    \b
    Examples:
      app status
      app status --watch
      app status --json
    """
    if web:
        address = _address()
        return print_json({"url": address}) if as_json else typer.echo(address)
    if watch:
        return run_once("status", lambda p: _watch(p, as_json=as_json))
    found = run_once("status", _look)
    if as_json:
        print_json(found)
    else:
        _print(found)
    raise typer.Exit(0 if found.is_well else 1)


def _address() -> str:
    from app.kernel.actions.web import ROOT
    from app.kernel.config import HttpServerSettings
    from app.processes import load_settings

    return f"{load_settings(only=(HttpServerSettings,))[HttpServerSettings].address}{ROOT}/overview"


async def _look(p: "Process") -> "DeploymentOverview":
    return await (await _looking(p))()


async def _looking(p: "Process") -> Any:
    from app.kernel.actions.compose import Operations, operations
    from app.modules.platform.overview import Overview

    found = Operations(await operations(p, [Overview]))
    return lambda: found("platform.overview")


async def _watch(p: "Process", *, as_json: bool) -> None:
    """Show the overview until interrupted. While the database is unavailable, it shows the last one and says so."""
    look = await _looking(p)
    is_live = sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown") and not as_json
    woken = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, woken.set)
    from app.kernel.errors import Unavailable

    with _live() if is_live else _Lines(as_json) as shown:
        last, problem = None, ""
        while True:
            try:
                last, problem = await look(), ""
            except Unavailable as error:
                problem = str(error)
            deadline = asyncio.get_running_loop().time() + _EVERY_S
            while (left := deadline - asyncio.get_running_loop().time()) > 0:
                shown.show(last, problem)
                woken.clear()
                try:
                    async with asyncio.timeout(left):
                        await woken.wait()  # the terminal has another size
                except TimeoutError:
                    break


class _Lines:
    """Shows each overview below the last one."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def show(self, found: "DeploymentOverview | None", problem: str) -> None:
        """Print an overview, or on stderr what is wrong."""
        if problem or found is None:
            sys.stderr.write(f"{problem}; trying again\n")
        elif self._as_json:
            from pydantic_core import to_json

            sys.stdout.write(to_json(found).decode() + "\n")
        else:
            _print(found)
            sys.stdout.write("\n")
        sys.stdout.flush()


def _live() -> Any:
    from loguru import logger
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    class Screen(Live):
        """The whole terminal."""

        def show(self, found: "DeploymentOverview | None", problem: str) -> None:
            width, height = self.console.size
            parts: list[RenderableType] = []
            if problem:
                parts.append(Text(f"{problem}; trying again", _style("red")))
            if found is not None:
                needed = 2 * min(len(found.attention), _NEEDS) + len(parts) + 7 + 3 * bool(found.backup)
                sections = 1 + bool(found.queues) + bool(found.schedules) + bool(found.errors)
                lines = max(1, (height - needed) // sections - 3)
                parts.append(_screen(found, width, min(lines, 20), f"every {_EVERY_S:g} s, Ctrl-C ends"))
            self.update(Group(*parts), refresh=True)

    logger.remove()  # its lines would be drawn over; what is wrong is shown
    return Screen(console=Console(), screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)


def _screen(found: "DeploymentOverview", width: int, lines: int, hint: str = "") -> "Group":
    """Return the overview for a terminal, with at most some lines of each list."""
    from rich.console import Group
    from rich.text import Text

    from app.kernel.cli.tables import harmless, lines_of

    parts: list[RenderableType] = [_title(found, width, hint)]
    for need in found.attention[:_NEEDS]:
        colour = "red" if need.level == "fail" else "yellow"
        parts.append(Text(f"{'x' if need.level == 'fail' else '!'} {harmless(need.problem)}", _style(colour)))
        parts.append(Text(f"  fix: {harmless(need.fix)}"))
    if (more := len(found.attention) - _NEEDS) > 0:
        parts.append(Text(f"  and {more} more: {NAME} doctor"))
    for what, items, columns, command in _sections(found):
        if items:
            parts += [Text(""), lines_of(items[:lines], columns, width)]
            if (more := len(items) - lines) > 0:
                parts.append(Text(f"and {more} more {what}: {NAME} {command}", _style("bright_black")))
        elif what == "processes":
            parts += [Text(""), Text("no process reports itself", _style("yellow"))]
    return Group(*parts)


def _title(found: "DeploymentOverview", width: int, hint: str) -> "Text":
    from rich.text import Text

    text = Text(f"{NAME} {found.environment}: ").append(_state(found), _style("green" if found.is_well else "red"))
    right = f"{found.at:%H:%M:%S}Z" + (f", {hint}" if hint else "")
    if len(text) + len(right) + 2 > width:
        right = right[:9]
    return text.append(" " * max(2, width - len(text) - len(right)) + right)


def _state(found: "DeploymentOverview") -> str:
    count = len(found.attention)
    return f"{count} thing{'s need' if count > 1 else ' needs'} attention" if count else "all is well"


def _style(colour: str) -> str:
    from app.kernel.cli.tables import is_plain

    return "" if is_plain() else colour


def _sections(found: "DeploymentOverview") -> "list[tuple[str, Sequence[object], Columns, str]]":
    """Return the lists of the overview: what they are, their rows, columns, and the command that has all."""
    from app.kernel.actions.columns import Column
    from app.modules.platform.backups import BackupSummary
    from app.modules.platform.overview import Group

    traffic = [("last hour", found.last_hour, found.hour), ("last day", found.last_day, found.day)]
    queues = sorted(found.queues, key=lambda q: (q.paused_at is None, -(q.ready + q.dead), q.name))
    schedules = sorted(found.schedules, key=lambda s: (s.paused_at is None, s.next_fire_at))
    short = tuple(column for column in type(found.queues[0]).columns if column.heading != "by") if queues else ()
    return [
        (
            "periods",
            [row for row in traffic if row[1] is not None],
            (
                Column("traffic", lambda row: row[0]),
                Column("requests/s", lambda row: f"{row[1].requests_per_s:.3g}"),
                Column("", lambda row: [point.requests for point in row[2]][-20:], extra=True, is_series=True),
                Column("p99", lambda row: _duration(row[1].p99_s)),
                Column("5xx", lambda row: row[1].requests_failed),
                Column("jobs/s", lambda row: f"{row[1].jobs_per_s:.3g}"),
                Column("failed", lambda row: row[1].jobs_failed),
                Column("errors", lambda row: row[1].errors),
                Column("ready", lambda row: row[1].ready),
            ),
            "metrics",
        ),
        ("processes", found.processes, Group.columns, "processes list"),
        ("queues", queues, short, "queues list"),
        ("schedules", schedules, type(schedules[0]).columns if schedules else (), "schedules list"),
        ("backups", [found.backup] if found.backup else [], BackupSummary.columns, "backup status"),
        ("errors", found.errors, type(found.errors[0]).columns if found.errors else (), "errors list"),
    ]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _print(found: "DeploymentOverview") -> None:
    """Print what fits on a terminal, or everything for a pipe."""
    if not sys.stdout.isatty():
        _print_plain(found)
        return
    from rich.console import Console

    console = Console()
    console.print(_screen(found, console.width, _LINES))


def _print_plain(found: "DeploymentOverview") -> None:
    """Print everything for a pipe."""
    from app.kernel.cli.tables import harmless, print_list

    sys.stdout.write(f"{NAME} {found.environment}: {_state(found)}, {found.at:%Y-%m-%d %H:%M:%S}Z\n")
    for need in found.attention:
        sys.stdout.write(f"{need.level}: {harmless(need.problem)}\n  fix: {harmless(need.fix)}\n")
    for _, items, columns, _ in _sections(found):
        if items:
            sys.stdout.write("\n")
            print_list(items, tuple(column for column in columns if not column.is_series))


typer_app = single(status)
