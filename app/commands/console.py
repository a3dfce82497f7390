"""What commands share: a Typer group, tables for people or JSON for programs, one-off processes."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Annotated, Any, TypeVar

import typer

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def group(summary: str) -> typer.Typer:
    """Return a group of commands."""
    return typer.Typer(help=summary, rich_markup_mode=None, no_args_is_help=True, add_completion=False)


def print_json(value: object) -> None:
    """Print a value as JSON on stdout."""
    from pydantic_core import to_json

    sys.stdout.write(to_json(value, indent=2).decode() + "\n")


def can_ask() -> bool:
    """Return whether there is somebody at a terminal to ask."""
    return sys.stdin is not None and sys.stdin.isatty()  # pyright: ignore[reportUnnecessaryComparison] - so it is when closed


def confirm(question: str) -> None:
    """Ask on stderr, since stdout is data. Raises Refusal unless the answer is yes."""
    from app.kernel.errors import Refusal

    sys.stderr.write(f"{question} [y/N]: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refusal("not confirmed; nothing was changed")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows on stdout: a table on a terminal, aligned plain text elsewhere, never cut to a width there.

    Columns without names have no heading.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=10_000, color_system=None)
    plain = "NO_COLOR" in os.environ  # rich leaves out the colours, but not the bold type
    heading = "" if plain else "bold"
    table = Table(box=None, pad_edge=False, show_edge=False, header_style=heading, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    if sys.stdout.isatty():
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    sys.stdout.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())


def run_once(name: str, work: Callable[[Any], Awaitable[T]]) -> T:
    """Run a one-off command: a Process for as long as the work takes. Returns what the work returns."""
    from app import ROOT
    from app.kernel.process import Process
    from app.kernel.telemetry.logs import configure_command
    from app.kernel.telemetry.redact import remember
    from app.processes import load_settings

    configure_command(name)
    settings = load_settings()
    remember(settings.secrets())

    async def body() -> T:
        async with Process(name, settings, ROOT).opened() as p:
            return await work(p)

    with asyncio.Runner() as runner:
        return runner.run(body())
