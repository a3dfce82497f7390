"""Annotations of input fields: `Annotated[str, Pattern("...")]`."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, LiteralString

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that the text must match."""

    regex: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Add the pattern to the schema."""
        return {**handler(source), "pattern": self.regex}


@dataclass(frozen=True, slots=True)
class Rule:
    """A constraint that the domain checks with its own error code. It is only documentation."""

    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], Schema]) -> Schema:
        """Add the rule to the JSON schema."""
        rule = {_camel(field.name): getattr(self, field.name) for field in fields(self)}
        return {**handler(core), **{keyword: value for keyword, value in rule.items() if value is not None}}


@dataclass(frozen=True, slots=True)
class Doc:
    """The description of a field, for OpenAPI and the command line, and an example of its values.

    Examples of inputs are without a field whose example is None, such as one that excludes another.
    """

    text: str
    example: str | None = ""

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], Schema]) -> Schema:
        """Add the description and the example to the JSON schema."""
        found = {**handler(core), "description": self.text}
        return {**found, "examples": [self.example]} if self.example != "" else found


@dataclass(frozen=True, slots=True)
class Option:
    """How a field is given on the command line, if it differs from its name and type.

    `form` is the notation: `duration` for seconds and `age` for a time, both such as 7d; `json` for JSON, or - for that
    of the standard input. `default` is the value of an
    absent flag; `note` describes on a terminal what the list omits then. `none` is the help of --none, which stands
    for null.
    """

    name: str = ""
    form: Literal["", "duration", "age", "json"] = ""
    is_argument: bool = False
    default: bool | None = None
    note: str = ""
    none: str = ""


@dataclass(frozen=True, slots=True)
class Choices:
    """The values of a list are some of those that a read lists: field `value` of its rows, shown as fields `shown`.

    `excluded` values are listed but cannot be chosen.
    """

    action: str
    value: str
    shown: tuple[str, ...]
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class IdOf:
    """The field is the id of a row of these tables. The command line also accepts a unique part of it.

    `listed_by` is the command that lists them, such as `jobs list`.
    """

    what: str
    tables: tuple[LiteralString, ...]
    listed_by: str = ""


@dataclass(frozen=True, slots=True)
class NameOf:
    """The field is a name. `names(db)` of `known` returns all names, to detect an unknown one.

    `listed_by` is the command that lists them, such as `queues list`.
    """

    what: str
    known: type[Any]
    listed_by: str = ""


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))
