"""Shared parts of commands: groups, parameters, JSON, confirmation, progress. `tables`, which loads rich, is apart."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol, TypeVar

import typer
from typer.core import TyperGroup

_WHOLE = re.compile("0|[1-9][0-9]{0,18}", re.ASCII)
_OBEYED = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters that JSON does not escape, and those of the direction of writing."""
_SENTENCE = re.compile(r"(?<=\.)\s")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NoInput = Annotated[bool, typer.Option("--no-input", help="Fail instead of asking.")]


def whole(least: int, most: int) -> Callable[[str | int], int]:
    """Return a parameter parser of integers in decimal digits between two bounds."""

    def parse(given: str | int) -> int:
        text = str(given)  # a default is a number
        if _WHOLE.fullmatch(text) is None or not least <= int(text) <= most:
            raise typer.BadParameter(f"must be an integer from {least} to {most}, in decimal digits")
        return int(text)

    return parse


def starting(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return the `autocompletion` of a parameter whose values have names."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


class _Group(TyperGroup):
    """A group whose help has the first sentence of each command."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        texts = {
            name: " ".join((command.help or "").partition("\n\n")[0].split()) for name, command in self._named(ctx)
        }
        with formatter.section("Commands"):
            formatter.write_dl([(name, _SENTENCE.split(text)[0]) for name, text in texts.items()])

    def _named(self, ctx: Any) -> list[tuple[str, Any]]:
        return [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]


def group(summary: str) -> typer.Typer:
    """Return a group of commands."""
    made = typer.Typer(cls=_Group, help=summary, rich_markup_mode=None, no_args_is_help=True, add_completion=False)
    made.callback()(lambda: None)  # otherwise a single command would replace its group
    return made


def single(function: Callable[..., None]) -> Callable[[str], typer.Typer]:
    """Return the `typer_app` of a module with one command."""

    def typer_app(name: str) -> typer.Typer:
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        app.command(name)(function)
        return app

    return typer_app


def print_json(value: object) -> None:
    """Print a value as JSON on stdout, in ASCII if stdout is not UTF-8; what a terminal may obey is escaped."""
    from pydantic_core import to_json

    text = _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", to_json(value, indent=2).decode())
    if sys.stdout.encoding.lower().replace("-", "") != "utf8":
        text = json.dumps(json.loads(text), indent=2)
    sys.stdout.write(text + "\n")


def print_count(noun: str, count: int, *, as_json: bool) -> None:
    """Print the number of rows that --dry-run has counted."""
    if as_json:
        print_json({"dry_run": True, "count": count})
    else:
        typer.echo(f"{count} {noun} would be changed; nothing was done")


def can_ask() -> bool:
    """Return whether stdin is a terminal."""
    return sys.stdin.isatty()


def confirm(question: str) -> None:
    """Ask for confirmation on stderr, because stdout is data. Raises Refusal unless the answer is yes."""
    from app.kernel.errors import Refusal

    sys.stderr.write(f"{question} [y/N]: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refusal("not confirmed; nothing was changed")


def moment(text: str) -> datetime:
    """Parse an RFC 3339 time or a day, in UTC by default; return it in UTC. A parameter parser."""
    try:
        parsed = datetime.fromisoformat(text)
        return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter("expected a time such as 2026-11-22T10:00:00Z, or a day such as 2026-11-22") from None


def seconds(*, least_s: float = 0, most_days: int = 36_500) -> Callable[[str], float]:
    """Return a parameter parser of durations between two bounds; it returns seconds."""

    def parse(text: str) -> float:
        from pydantic import TypeAdapter, ValidationError

        from app.kernel.config import DURATION_FORM

        try:
            found = TypeAdapter[float](Annotated[float, DURATION_FORM]).validate_python(text)
        except ValidationError:
            raise typer.BadParameter("expected a duration such as 30s, 5m, 12h or 7d") from None
        if not least_s <= found <= most_days * 86400:
            raise typer.BadParameter(f"expected a duration from {least_s:g}s to {most_days}d")
        return found

    return parse


class Chunk(Protocol):
    """The result of a batch."""

    @property
    def next_cursor(self) -> str | None:
        """The cursor of the next batch; None after the last one."""
        ...


C = TypeVar("C", bound=Chunk)


async def in_chunks(step: Callable[[str | None], Awaitable[C]], cursor: str | None = None) -> AsyncGenerator[C]:
    """Yield the result of each batch. An interrupt takes effect after the current batch."""
    while True:
        under_way = asyncio.ensure_future(step(cursor))
        try:
            done = await asyncio.shield(under_way)
        except asyncio.CancelledError:
            yield await under_way
            raise
        yield done
        cursor = done.next_cursor
        if cursor is None:
            return


def can_show_progress() -> bool:
    """Return whether stderr is a terminal that supports progress bars."""
    from app.kernel.text import allows_colour

    return allows_colour(sys.stderr.isatty())


@contextmanager
def progress(what: str, total: int | None) -> Generator[Callable[[int], None]]:
    """Show a progress bar if stderr is a terminal. Call the yielded function with the progress since its last call."""
    if not can_show_progress():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
