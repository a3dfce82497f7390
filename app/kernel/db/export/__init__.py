"""Logical export of one module, and its import: for moving it, and for development, without personal data.

A module declares what happens to each text, address, JSON and byte column of its tables when an export is scrubbed
(`personal` of its manifest). Columns of other types, such as numbers and times, are kept unless they are declared.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Constant(NamedTuple):
    """A value in place of every value that is not null."""

    value: str


class Pseudonym(NamedTuple):
    """A text in place of every value that is not null: the same for the same value, in all tables of an export.

    It is `prefix` and a keyed digest, whose key is thrown away. `of` is another column that it is made from.
    """

    prefix: str = ""
    of: str = ""


Rule = Literal["kept", "null", "empty"] | Constant | Pseudonym
"""`empty` is the empty value of the type: a text without characters, `{}` for JSON and arrays."""
Dropped = Literal["dropped"]
Personal = Mapping[str, Mapping[str, Rule] | Dropped]
"""Tables of a module, without its schema, to the rules of their columns; `dropped`: the export has none of its rows."""
