"""Values as people read them: relative times with the exact one behind, short ids, states with a colour and a name."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, cast
from uuid import UUID

from markupsafe import Markup, escape

from app.kernel.actions.columns import Column, Columns
from app.kernel.console.charts import sparkline
from app.kernel.decoding import name_outside
from app.kernel.text import COLOUR_OF, exact, relative

_SHORT = 8
_LONG = 120
_NONE = Markup('<span class="none" aria-hidden="true">\N{EN DASH}</span>')


@dataclass(frozen=True, slots=True)
class Table:
    """A table: headings, and rows of cells."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Markup]]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """A record: names and values, and its lists of records as tables."""

    values: Sequence[tuple[str, Markup]]
    tables: Sequence[Table]


def when(moment: datetime | None) -> Markup:
    """Return a relative time; the exact one is its title."""
    if moment is None:
        return _NONE
    text = relative(moment, datetime.now(UTC))
    return Markup('<time datetime="{}" title="{}">{}</time>').format(moment.isoformat(), exact(moment), text)


def state(text: str) -> Markup:
    """Return a state with its colour."""
    return Markup('<span class="state {}">{}</span>').format(COLOUR_OF.get(text, "plain"), text) if text else _NONE


def short(value: UUID | str, href: str = "") -> Markup:
    """Return the end of an id, which commands accept; the whole one is its title."""
    text = str(value)
    if href:
        return Markup('<a class="id" href="{}" title="{}">{}</a>').format(href, text, text[-_SHORT:])
    return Markup('<span class="id" title="{}">{}</span>').format(text, text[-_SHORT:])


def cell(value: object, *, is_state: bool = False, href: str = "") -> Markup:
    """Return a value for a table."""
    if value is None or value == "":
        return _NONE
    if isinstance(value, Enum):
        value = cast("object", value.value)
    if isinstance(value, UUID):
        return short(value, href)
    if isinstance(value, datetime):
        return when(value)
    if isinstance(value, tuple | list | set | frozenset):
        return _several(cast("Collection[object]", value), " " if isinstance(value, tuple) else ", ", is_state=is_state)
    if is_state and isinstance(value, str):
        return state(value)
    return _text(value, href)


def _text(value: object, href: str) -> Markup:
    if isinstance(value, Markup):
        return value
    if isinstance(value, dict) or (is_dataclass(value) and not isinstance(value, type)):
        found = cast("object", value) if isinstance(value, dict) else asdict(value)
        text = json.dumps(found, ensure_ascii=False, default=str)
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, float):
        text = f"{value:,.3f}".rstrip("0").rstrip(".")
    else:
        text = f"{value:,}" if isinstance(value, int | Decimal) else str(value)
    found = Markup('<a href="{}">{}</a>').format(href, text) if href else escape(text)
    return Markup('<span class="long">{}</span>').format(found) if len(text) > _LONG else found


def _several(values: "Collection[object]", glue: str, *, is_state: bool) -> Markup:
    parts = [part for part in values if part not in (None, "")]
    found = [cell(part, is_state=is_state and isinstance(part, str)) for part in parts]
    return escape(glue).join(found) if found else _NONE


Link = Callable[[str, object], str]
"""Returns the address of the page of what a field names; empty without one."""


def no_link(_name: str, _value: object) -> str:
    """Return no address."""
    return ""


def cells(row: object, columns: Columns, href: str = "", link: Link = no_link) -> list[Markup]:
    """Return the cells of a row; the first one links to its page."""
    return [_cell(column, row, "" if at else href, link) for at, column in enumerate(columns)]


def _cell(column: Column, row: object, href: str, link: Link) -> Markup:
    value = column.value(row)
    if column.is_series:
        return sparkline(column.heading, cast("Sequence[float]", value))
    if not href and isinstance(column.of, str):
        href = link(column.of, value) or link(column.heading, value)
    return cell(value, is_state=column.is_state, href=href)


def is_number(column: Column, rows: Sequence[object]) -> bool:
    """Return whether a column has numbers only, which are aligned to the right."""
    values = [column.value(row) for row in rows]
    numbers = [
        isinstance(value, int | float | Decimal) and not isinstance(value, bool)
        for value in values
        if value is not None
    ]
    return bool(numbers) and all(numbers)


def record(found: Any, link: Link = no_link) -> Record:
    """Return a record as on a terminal: the fields of a record in the first field are its own, lists are tables."""
    values: list[tuple[str, Markup]] = []
    tables: list[Table] = []
    for at, (name, value) in enumerate(_named(found)):
        is_record = is_dataclass(value)
        title = name.replace("_", " ")
        listed = cast("list[Any]", value) if isinstance(value, list | tuple) else []
        if listed and is_dataclass(listed[0]):
            columns: Columns = getattr(listed[0], "columns", ()) or tuple(
                Column(key.replace("_", " "), key) for key, _ in _named(listed[0])
            )
            tables.append(
                Table([c.heading for c in columns], [cells(row, columns, link=link) for row in listed], title)
            )
        elif is_record:
            values += [(f"{title} {key}" if at else key, text) for key, text in record(value, link).values]
        elif cast("object", value) not in (None, "", [], {}):
            values.append((title, _described(name, cast("object", value), link(name, cast("object", value)))))
    return Record(values, tables)


def _described(name: str, value: object, href: str = "") -> Markup:
    """Return a value for a record: whole, with line breaks."""
    if isinstance(value, UUID):
        whole = Markup("<code>{}</code>").format(value)
        return Markup('<a href="{}">{}</a>').format(href, whole) if href else whole
    if isinstance(value, datetime):
        return Markup('{} <span class="exact">{}</span>').format(when(value), exact(value))
    if isinstance(value, str):
        is_state = name in ("state", "outcome", "last_outcome")
        return Markup("<pre>{}</pre>").format(value) if "\n" in value else cell(value, is_state=is_state, href=href)
    if isinstance(value, list) and value and all(isinstance(part, str) for part in cast("list[object]", value)):
        items = [Markup("<li>{}</li>").format(part) for part in cast("list[str]", value)]
        return Markup('<ul class="plain">{}</ul>').format(Markup("").join(items))
    if isinstance(value, dict | list):
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
        return Markup("<pre>{}</pre>").format(text) if value else _NONE
    return cell(value)


def _named(found: Any) -> list[tuple[str, Any]]:
    if is_dataclass(found):
        return [(name_outside(item.name), getattr(found, item.name)) for item in fields(found)]
    if isinstance(found, dict):
        return [(str(name), value) for name, value in cast("dict[object, object]", found).items()]
    return [("value", found)]
