"""What the declaration of an input field says beyond its type, as annotations: `Annotated[str, Pattern("...")]`."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, LiteralString

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that the text must match; `^` and `$` stand for its ends."""

    regex: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Return the schema with the pattern in it."""
        return {**handler(source), "pattern": self.regex}


@dataclass(frozen=True, slots=True)
class Rule:
    """What the domain checks itself, and refuses with a code of its own: only the documentation says it."""

    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], Schema]) -> Schema:
        """Return the JSON schema with the rule in it."""
        said = {_camel(field.name): getattr(self, field.name) for field in fields(self)}
        return {**handler(core), **{keyword: value for keyword, value in said.items() if value is not None}}


@dataclass(frozen=True, slots=True)
class Doc:
    """What a field means, for OpenAPI and the command line."""

    text: str

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], Schema]) -> Schema:
        """Return the JSON schema with the description in it."""
        return {**handler(core), "description": self.text}


@dataclass(frozen=True, slots=True)
class Option:
    """How a field is given on the command line, where its name and type do not say it.

    `form` is how a person writes it: seconds as a `duration` such as 7d, a time as an `age` such as 7d. A flag that is
    not given is `default`; on a terminal, `note` says then what is not shown. `none` is what null means, for a number
    that must be given and may be null: --none.
    """

    name: str = ""
    form: Literal["", "duration", "age"] = ""
    is_argument: bool = False
    default: bool | None = None
    note: str = ""
    none: str = ""


@dataclass(frozen=True, slots=True)
class IdOf:
    """The field identifies a row of these tables: on the command line, a part of it that is unique will do."""

    what: str
    tables: tuple[LiteralString, ...]


@dataclass(frozen=True, slots=True)
class NameOf:
    """The field names something. `known` has `names(db)`, to tell a name that nothing has from an empty list."""

    what: str
    known: type[Any]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))
