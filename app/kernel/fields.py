"""What the declaration of an input field says beyond its type, as annotations: `Annotated[str, Pattern("...")]`."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

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


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))
