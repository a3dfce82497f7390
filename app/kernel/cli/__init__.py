"""What commands share: a Typer group, tables for people or JSON for programs, questions, progress."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar, cast

import typer

if TYPE_CHECKING:
    from app.kernel.actions.columns import Columns
    from app.kernel.paging import Page

T = TypeVar("T")
_WHOLE = re.compile("0|[1-9][0-9]{0,18}", re.ASCII)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def whole(least: int, most: int) -> Callable[[str | int], int]:
    """Return a parser of whole numbers between two bounds, for a parameter: in plain digits, as in settings."""

    def parse(given: str | int) -> int:
        text = str(given)  # a default is a number
        if _WHOLE.fullmatch(text) is None or not least <= int(text) <= most:
            raise typer.BadParameter(f"must be an integer from {least} to {most}, in decimal digits")
        return int(text)

    return parse


Most = Annotated[
    int, typer.Option("--limit", parser=whole(1, 1000), metavar="NUMBER", help="Maximum number of rows, up to 1000.")
]
Cursor = Annotated[str | None, typer.Option(help="Go on where an earlier call stopped.")]


def group(summary: str) -> typer.Typer:
    """Return a group of commands."""
    return typer.Typer(help=summary, rich_markup_mode=None, no_args_is_help=True, add_completion=False)


def print_json(value: object) -> None:
    """Print a value as JSON on stdout. Where that has no UTF-8, in ASCII: an escape sequence of its own is no JSON."""
    from pydantic_core import to_json

    text = to_json(value, indent=2).decode()
    if sys.stdout.encoding.lower().replace("-", "") != "utf8":
        text = json.dumps(json.loads(text), indent=2)
    sys.stdout.write(text + "\n")


def can_ask() -> bool:
    """Return whether there is somebody at a terminal to ask."""
    return sys.stdin.isatty()


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
        table.add_row(*(Text(_harmless(str(cell))) for cell in row))
    if sys.stdout.isatty():
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    sys.stdout.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())


def _harmless(text: str) -> str:
    """Keep a terminal from obeying what somebody else has written, such as the message of an error."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def print_page(page: "Page[Any]", columns: "Columns") -> None:
    """Print a part of a list; when there may be more, say on stderr how to get it."""
    rows = [[_cell(column.value(item)) for column in columns] for item in page.items]
    print_table([column.heading for column in columns], rows)
    if page.next_cursor is not None:
        sys.stderr.write(f"there may be more: --cursor {page.next_cursor}\n")


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return shown(value)
    if isinstance(value, tuple):
        return " ".join(str(_cell(part)) for part in cast("tuple[object, ...]", value)).strip()
    return " ".join(value.split()) if isinstance(value, str) else value


def print_details(found: Any) -> None:
    """Print a record as a table of names and values; the lists of records that it holds, as tables below."""
    rows: dict[str, object] = {}
    below: list[list[dict[str, Any]]] = []
    for name, value in _fields(found).items():
        listed = [_fields(item) for item in cast("list[Any]", value)] if isinstance(value, list) else []
        if any(listed):
            below.append(listed)
        elif inner := _fields(value):
            rows |= {f"{name} {key}": _cell(part) for key, part in inner.items()}
        elif isinstance(value, dict | list):
            rows[name] = json.dumps(value, indent=2, ensure_ascii=False, default=str) if value else ""
        else:
            rows[name] = shown(value) if isinstance(value, datetime) else value
    print_table(("", ""), [(name.replace("_", " "), value) for name, value in rows.items() if value not in (None, "")])
    for records in below:
        sys.stdout.write("\n")
        print_table(list(records[0]), [[_cell(value) for value in record.values()] for record in records])


def _fields(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass; of anything else, none."""
    return {name: getattr(record, name) for name in getattr(record, "__dataclass_fields__", ())}


def shown(moment: datetime | None) -> str:
    """Return a moment for people, in UTC; nothing for none."""
    return f"{moment:%Y-%m-%d %H:%M:%S}Z" if moment else ""


def moment(text: str) -> datetime:
    """Return a moment of RFC 3339, or a day; in UTC unless it says otherwise. For a parameter's parser."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("expected a time such as 2026-11-22T10:00:00Z, or a day such as 2026-11-22") from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def stored_name(text: str) -> str:
    """Return the name of something that is stored. For a parameter's parser."""
    if not 0 < len(text) <= 128 or not text.isprintable():
        raise typer.BadParameter("expected a name of 1 to 128 printable characters")
    return text


def seconds(*, least_s: float = 0, most_days: int = 36_500) -> Callable[[str], float]:
    """Return a parser of durations between two bounds, for a parameter; it returns seconds."""

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
    """What a part of a longer work returned."""

    @property
    def next_cursor(self) -> str | None:
        """Where the next part starts; None when this was the last."""
        ...


C = TypeVar("C", bound=Chunk)


async def in_chunks(step: Callable[[str | None], Awaitable[C]], cursor: str | None = None) -> AsyncGenerator[C]:
    """Yield what each part of a longer work returned. When interrupted, the part under way is finished first."""
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
    """Return whether stderr is a terminal that can move its cursor."""
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


@contextmanager
def progress(what: str, total: int | None) -> Generator[Callable[[int], None]]:
    """Show on stderr, if it is a terminal, how far something is: call what this returns with how much was done."""
    if not can_show_progress():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
