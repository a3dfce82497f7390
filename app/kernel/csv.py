"""Lists as CSV (RFC 4180): the columns that a row type declares, with whole ids and exact times."""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import cast

from app.kernel.actions.columns import Columns

MEDIA_TYPE = "text/csv; charset=utf-8; header=present"
MOST_ROWS = 100_000
"""Maximum number of rows of a list as CSV."""

# what a spreadsheet takes for a formula, at the start of a cell or after what may separate cells there
_FORMULA = re.compile(r"(^|[;,|\t\r\n])(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])")


def heading(columns: Columns) -> str:
    """Return the first line."""
    return _line([column.heading for column in columns])


def lines(columns: Columns, rows: Iterable[object]) -> str:
    """Return a line per row."""
    return "".join(_line([_cell(column.value(row)) for column in columns]) for row in rows)


def _line(cells: Sequence[str]) -> str:
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_ALL).writerow(cells)
    return written.getvalue()


def _cell(value: object) -> str:
    """Return a cell. Text that a spreadsheet would take for a formula gets an apostrophe (OWASP, CSV injection)."""
    if value is None:
        return ""
    value = cast("object", value.value) if isinstance(value, Enum) else value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, tuple | list):
        return " ".join(filter(None, map(_cell, cast("Sequence[object]", value))))
    text = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict) else str(value)
    return _FORMULA.sub(r"\1'", text)
