"""Decodes inputs from requests and command lines.

Integers are decimal digits, booleans `true` and `false`, times RFC 3339 with a zone, identifiers UUIDs (36 characters).
In a text, an object or an array is JSON.
Values are not trimmed, rounded or guessed. In JSON an integer may be written as 5.0, as in JSON Schema.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Generic, NewType, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, SchemaValidator

from app.kernel.errors import Invalid

T = TypeVar("T")
TIME = (
    r"^(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
_UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
_WRITTEN = {
    "int": (r"^(0|-?[1-9][0-9]{0,18})$", "must be an integer in decimal digits, such as 20"),
    "float": (r"^-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?$", "must be a number in decimal digits, such as 2.5"),
    "bool": (r"^(true|false)$", "must be true or false"),
    "date": (r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", "must be a date, such as 2026-11-22"),
    "datetime": (TIME, "must be a time with a zone, such as 2026-11-22T10:00:00Z"),
    "uuid": (_UUID, "must be a UUID, such as 01a20304-51b9-712d-b52c-fd40df0b43e3"),
}
_TEXT_IN_JSON = frozenset({"date", "datetime", "uuid"})
_MADE_OF_JSON = frozenset({"dataclass", "decimal", "enum", "frozenset", "set", "tuple"})
_JSON_IN_TEXT = frozenset({"any", "dict", "frozenset", "list", "set", "tuple"})
_EXACT_FLOATS = 2**53


class Decoder(Generic[T]):
    """Decodes inputs of one type: a dataclass or a list. Refuses unknown fields unless `ignore_unknown`."""

    def __init__(self, kind: Any, *, ignore_unknown: bool = False) -> None:
        core = adapter(kind, ignore_unknown=ignore_unknown).core_schema
        self._json = SchemaValidator(_written(core, text=False))
        self._text = SchemaValidator(_written(core, text=True))

    def json(self, value: Any) -> T:
        """Return the input from a parsed JSON value. Raises Invalid."""
        try:
            return self._json.validate_python(value)
        except ValidationError as error:
            raise _refused(error) from None

    def text(self, values: dict[str, str]) -> T:
        """Return the input from named texts: of a path, a query, a form, or options. Raises Invalid."""
        try:
            return self._text.validate_strings(cast("Any", values))
        except ValidationError as error:
            raise _refused(error) from None


def adapter(kind: Any, *, ignore_unknown: bool = False) -> TypeAdapter[Any]:
    """Return the TypeAdapter of an input type."""
    config: ConfigDict = {
        "extra": "ignore" if ignore_unknown else "forbid",
        "strict": True,
        "alias_generator": name_outside,
    }
    # pydantic accepts a configuration for an alias of a dataclass, not for the dataclass; nested types inherit it
    named: Any = NewType("Input", kind) if is_dataclass(kind) else kind  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
    return TypeAdapter[Any](named, config=config)


def name_outside(field: str) -> str:
    """Return the external name of a field, without the underscore of names such as from_ (a keyword of Python)."""
    return field.removesuffix("_")


def fields_outside(record: Any) -> dict[str, Any]:
    """Return the fields of a record by their external names; none of anything else."""
    items = fields(record) if is_dataclass(record) else ()
    return {name_outside(item.name): getattr(record, item.name) for item in items}


def _written(schema: Any, *, text: bool, is_nested: bool = False) -> Any:
    """Return a pydantic schema that checks the form of each value, in texts or in JSON."""
    if not isinstance(schema, dict):
        parts = cast("list[Any]", schema)
        return [_written(p, text=text, is_nested=is_nested) for p in parts] if isinstance(schema, list) else schema
    kind = cast("dict[str, Any]", schema).get("type")
    if text and isinstance(kind, str) and (kind in _JSON_IN_TEXT or (kind == "dataclass" and is_nested)):
        inner = _written(cast("Any", schema), text=False)
        named = {"ref": inner.pop("ref")} if "ref" in inner else {}
        return {**_before(_parsed, inner), **named}
    is_nested = is_nested or kind == "dataclass-field"
    found = {
        key: value
        if key in {"default", "expected", "metadata"}
        else _written(value, text=text, is_nested=is_nested or key == "definitions")
        for key, value in cast("dict[str, Any]", schema).items()
    }
    if kind == "int" and not text:
        return _before(_integer, found)
    if kind == "literal" and text:
        by_text = {str(value): value for value in cast("list[object]", found["expected"])}
        return _before(lambda value: by_text.get(value, value), found)
    if isinstance(kind, str) and kind in (_WRITTEN if text else _TEXT_IN_JSON):
        pattern, message = _WRITTEN[kind]
        written = {"type": "str", "strict": True, "pattern": pattern}
        checked = {
            "type": "custom-error",
            "schema": written,
            "custom_error_type": kind,
            "custom_error_message": message,
        }
        return {"type": "chain", "steps": [checked, {**found, "strict": False}]}
    return {**found, "strict": False} if isinstance(kind, str) and kind in _MADE_OF_JSON else found


def _before(convert: Callable[[Any], Any], schema: Any) -> dict[str, Any]:
    return {"type": "function-before", "function": {"type": "no-info", "function": convert}, "schema": schema}


def _parsed(value: Any) -> Any:
    """Return what a text holds, as in a body. Raises an error of its field."""
    from app.kernel.http.codecs import parse_json
    from app.kernel.http.problems import HttpProblem

    try:
        return parse_json(value.encode(errors="surrogatepass"))
    except HttpProblem as problem:
        reason = str(problem).removeprefix("the body is ")
        raise PydanticCustomError("json", "is {reason}", {"reason": reason}) from None


def _integer(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT_FLOATS:
        return int(value)
    return value


def _refused(error: ValidationError) -> Invalid:
    errors = error.errors(include_url=False, include_input=False)
    found = tuple((".".join(str(part) for part in e["loc"]) or "body", _message(dict(e))) for e in errors)
    return Invalid("the input is invalid; see errors", found)


def _message(error: dict[str, Any]) -> str:
    """Return the error message of a field, in our words where defined."""
    known = _MESSAGES.get(error["type"])
    given: dict[str, Any] = error.get("ctx", {})
    return error["msg"] if known is None else known.format(**given)


_MESSAGES = {
    "missing": "is required",
    "missing_argument": "is required",
    "unexpected_keyword_argument": "is unknown",
    "extra_forbidden": "is unknown",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
    "decimal_parsing": "must be a number, such as 2.5",
    "decimal_type": "must be a number, such as 2.5",
    "string_type": "must be text",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "is malformed",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be an array",
    "dict_type": "must be an object",
    "dataclass_type": "must be an object",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}
