"""Tables and records.

A terminal shows one line per row: ids are shortened to their last 8 or more characters that are unique in the list,
which commands accept; times are relative; long texts end in an ellipsis. In a pipe nothing is shortened, and times are
in UTC.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.kernel.text import COLOUR_OF, exact, printable, relative

if TYPE_CHECKING:
    from app.kernel.actions.columns import Column, Columns
    from app.kernel.paging import Page

_SHORTEST_ID = 8
_SHORTEST_TEXT = 8
_READABLE = 24
_GAP = 2
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_BARS, _PLAIN_BARS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"


def print_page(page: "Page[Any]", columns: "Columns") -> None:
    """Print a page, and on stderr the cursor of the next one."""
    print_list(page.items, columns)
    if page.next_cursor is not None:
        sys.stderr.write(f"there may be more: --cursor {page.next_cursor}\n")


def print_list(items: Sequence[object], columns: "Columns") -> None:
    """Print rows by their columns. An empty list prints nothing on a terminal, and only a heading in a pipe."""
    if not sys.stdout.isatty():
        values = [[_whole(column.value(item)) for column in columns] for item in items]
        _print_whole([column.heading for column in columns], values)
    elif items:
        console = Console()
        console.print(lines_of(items, columns, console.width))


def lines_of(items: Sequence[object], columns: "Columns", width: int) -> Table:
    """Return a table with one line per row. A narrow terminal omits extra columns and shortens texts."""
    values, now = [[column.value(item) for column in columns] for item in items], datetime.now(UTC)
    length = _unique_length([row[0] for row in values if isinstance(row[0], UUID)])
    cells = [[_short(column, value, now, length) for column, value in zip(columns, row, strict=True)] for row in values]
    is_text = [
        not column.is_state and all(isinstance(row[at], str) for row in values) for at, column in enumerate(columns)
    ]
    contents = [max(row[at].cell_len for row in cells) for at in range(len(columns))]
    widths = _widths(columns, contents, is_text, width)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="" if is_plain() else "bold")
    overflow = "ellipsis" if harmless(_ELLIPSIS) == _ELLIPSIS else "crop"
    for at, wide in widths.items():
        table.add_column(columns[at].heading, width=wide, no_wrap=True, overflow=overflow)
    for row in cells:
        table.add_row(*(row[at] for at in widths))
    return table


def _widths(columns: "Columns", contents: list[int], is_text: list[bool], room: int) -> dict[int, int]:
    """Return the widths of the shown columns.

    Without enough room, extra columns are omitted first; then texts are shortened, the longest first, then headings.
    """
    widths = {at: max(content, len(columns[at].heading)) for at, content in enumerate(contents)}
    while _over({at: min(width, _READABLE) if is_text[at] else width for at, width in widths.items()}, room) > 0:
        if not (left_out := [at for at in widths if columns[at].extra]):
            break
        del widths[left_out[-1]]
    while (over := _over(widths, room)) > 0:
        texts = [at for at, width in widths.items() if is_text[at] and width > _SHORTEST_TEXT]
        if not texts:
            return {at: min(width, max(contents[at], _SHORTEST_TEXT)) for at, width in widths.items()}
        longest = max(texts, key=lambda at: widths[at])
        widths[longest] = max(_SHORTEST_TEXT, widths[longest] - (over + 1) // 2)
    return widths


def _over(widths: dict[int, int], room: int) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1) - room


def _short(column: "Column", value: object, now: datetime, length: int) -> Text:
    """Return a cell for a terminal."""
    if isinstance(value, UUID):
        return Text(str(value)[-length:] if length else str(value))
    if isinstance(value, datetime):
        return Text(relative(value, now))
    if column.is_series:
        return Text(_bars(cast("Sequence[int]", value)))
    if isinstance(value, tuple):
        parts = cast("tuple[object, ...]", value)
        return Text(" ").join(text for part in parts if (text := _short(column, part, now, length)))
    text = str(_whole(value))
    return Text(harmless(text), COLOUR_OF.get(text, "") if column.is_state and not is_plain() else "")


def _bars(counts: Sequence[int]) -> str:
    """Return a bar per number, of up to eight eighths; only 0 has none."""
    bars = _BARS if harmless(_BARS) == _BARS else _PLAIN_BARS
    most = max(counts, default=0) or 1
    return "".join(bars[-(-8 * count // most)] for count in counts)


def _unique_length(ids: Sequence[UUID]) -> int:
    """Return the number of last characters that make ids unique."""
    texts = {str(each) for each in ids}
    return next((n for n in range(_SHORTEST_ID, 36) if len({text[-n:] for text in texts}) == len(texts)), 36)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows with wrapped texts, such as settings. Columns without names have no heading."""
    if not sys.stdout.isatty():
        _print_whole(columns, rows)
        return
    console = Console()
    console.print(_table(columns, rows))


def _print_whole(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print aligned plain text without a maximum width."""
    console = Console(width=10_000, color_system=None)
    with console.capture() as captured:
        console.print(_table(columns, rows))
    sys.stdout.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    heading = "" if is_plain() else "bold"  # with NO_COLOR, rich omits colours but not bold type
    table = Table(box=None, pad_edge=False, show_edge=False, header_style=heading, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(harmless(str(cell))) for cell in row))
    return table


def is_plain() -> bool:
    """Return whether no colours are wanted (no-color.org)."""
    return "NO_COLOR" in os.environ


def harmless(text: str) -> str:
    """Escape control characters, and what stdout cannot encode, so that its width is known."""
    return printable(text).encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding)


def _whole(value: object) -> object:
    """Return a cell for a pipe."""
    if value is None:
        return ""
    if isinstance(value, Enum):
        return cast("object", value.value)
    if isinstance(value, datetime):
        return exact(value)
    if isinstance(value, tuple | list):
        return " ".join(str(_whole(part)) for part in cast("Sequence[object]", value)).strip()
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return " ".join(value.split()) if isinstance(value, str) else value


def print_details(found: Any) -> None:
    """Print a record as a table of names and values, and its lists of records as tables below.

    The fields of a record in the first field are shown as fields of the record itself.
    """
    rows: dict[str, object] = {}
    below: list[list[Any]] = []
    for at, (name, value) in enumerate(_fields(found).items()):
        listed = cast("list[Any]", value) if isinstance(value, list) else []
        if any(_fields(item) or isinstance(item, dict) for item in listed):
            below.append(listed)
        elif inner := _fields(value):
            rows |= {f"{name} {key}" if at else key: part for key, part in inner.items()}
        else:
            rows[name] = value
    print_table(("", ""), _described(rows))
    for records in below:
        if isinstance(records[0], dict):
            for record in records:
                sys.stdout.write("\n")
                print_table(("", ""), _described(cast("dict[str, object]", record)))
        else:
            sys.stdout.write("\n")
            below_it = [_fields(record) for record in records]
            print_table(list(below_it[0]), [[_whole(value) for value in record.values()] for record in below_it])


def _described(rows: dict[str, object]) -> list[tuple[str, object]]:
    """Return the names and values of a record without empty ones."""
    return [(name.replace("_", " "), text) for name, value in rows.items() if (text := _value(value)) not in (None, "")]


def _value(value: object) -> object:
    """Return a value for a record; a list of texts has one per line."""
    if isinstance(value, Enum):
        return cast("object", value.value)
    if isinstance(value, datetime):
        return f"{exact(value)} ({relative(value, datetime.now(UTC))})" if sys.stdout.isatty() else exact(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in cast("list[object]", value)):
        return "\n".join(cast("list[str]", value))
    if isinstance(value, list) and all(isinstance(item, int) for item in cast("list[object]", value)):
        return _whole(cast("list[int]", value))
    if isinstance(value, dict | list):
        return json.dumps(value, indent=2, ensure_ascii=False, default=str) if value else ""
    return value


def _fields(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass; empty for other values."""
    return {item.name: getattr(record, item.name) for item in fields(record)} if is_dataclass(record) else {}
