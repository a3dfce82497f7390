"""Columns of lists for people, declared on the row type: they serve the terminal's table and the CSV alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    `of` is the field that it shows (that of its heading, unless said), or a function of the row, which may return
    several values. An `extra` column is left out where there is no room for it; the words of a state have colours.
    """

    heading: str
    of: str | Callable[[Any], object] = ""
    extra: bool = False
    is_state: bool = False

    def value(self, row: object) -> object:
        """Return what the column shows of a row."""
        if callable(self.of):
            return self.of(row)
        return getattr(row, self.of or self.heading.replace(" ", "_"))


Columns = tuple[Column, ...]
