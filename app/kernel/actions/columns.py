"""Columns of lists, declared on the row type, for tables on a terminal and in the console."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    `of` is the name of a field (by default the heading), or a function of the row that returns one or more values. A
    narrow terminal omits `extra` columns. A state is coloured; a series of numbers is drawn.
    """

    heading: str
    of: str | Callable[[Any], object] = ""
    extra: bool = False
    is_state: bool = False
    is_series: bool = False

    def value(self, row: object) -> object:
        """Return the value of the column in a row."""
        if callable(self.of):
            return self.of(row)
        return getattr(row, self.of or self.heading.replace(" ", "_"))


Columns = tuple[Column, ...]
