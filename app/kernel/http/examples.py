"""Examples of JSON schemas: the same ones every time, and valid."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

Schema = dict[str, Any]
_DEEPEST = 4
_FORMATS = {
    "uuid": "01a20304-51b9-712d-b52c-fd40df0b43e3",
    "date-time": "2026-11-22T10:00:00Z",
    "date": "2026-11-22",
    "uri": "https://api.example.com",
}
_TEXT = "string"


class Examples:
    """Makes examples. What a field declares as its example also serves other fields of its name."""

    def __init__(self, schemas: list[Schema], definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions
        self._named = dict(_declared([*schemas, *definitions.values()]))

    def of(self, schema: Schema, name: str = "", depth: int = 0) -> Any:
        """Return a value that the schema of the field `name` allows."""
        if reference := schema.get("$ref"):
            return self.of(self._definitions[reference.rpartition("/")[2]], name, depth)
        for given in (schema.get("examples"), [schema["const"]] if "const" in schema else None, schema.get("enum")):
            if given:
                return given[0]
        if schema.get("default") is not None:
            return schema["default"]
        if choices := schema.get("anyOf") or schema.get("oneOf"):
            kept = [choice for choice in choices if choice.get("type") != "null"]
            return self.of(kept[0], name, depth + 1) if kept and depth < _DEEPEST else None
        return self._made(schema, name, depth)

    def _made(self, schema: Schema, name: str, depth: int) -> Any:
        kind, items = schema.get("type"), schema.get("items")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return [self.of(items, name.removesuffix("s"), depth + 1)] if items and depth < _DEEPEST else []
        if kind == "string":
            return self._string(schema, name)
        if kind in ("integer", "number"):
            step = 1 if kind == "integer" else 0.5
            least = max(step, schema.get("minimum", step), schema.get("exclusiveMinimum", 0) + step)
            return min(least, schema.get("maximum", least))
        return True if kind == "boolean" else None

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        required, fields = schema.get("required", ()), schema.get("properties", {})
        wanted = {key: value for key, value in fields.items() if depth < _DEEPEST or key in required}
        found = {key: self.of(value, key, depth + 1) for key, value in wanted.items()}
        return {key: value for key, value in found.items() if value not in (None, "") or key in required}

    def _string(self, schema: Schema, name: str) -> str:
        if known := _FORMATS.get(schema.get("format", "")):
            return known
        if (named := self._named.get(name)) and _fits(named, schema):
            return named
        return _TEXT.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]


def _declared(part: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names of fields whose schemas have an example, and the example, if it is a text."""
    if isinstance(part, list):
        for each in cast("list[Any]", part):
            yield from _declared(each, name)
    elif isinstance(part, dict):
        found = cast("Schema", part)
        examples = found.get("examples")
        if isinstance(examples, list) and examples and isinstance(examples[0], str):
            yield name, examples[0]
        for key in ("anyOf", "oneOf", "items"):
            yield from _declared(found.get(key), name.removesuffix("s") if key == "items" else name)
        for key, value in found.get("properties", {}).items():
            yield from _declared(value, key)


def _fits(text: str, schema: Schema) -> bool:
    within = schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", len(text))
    return within and re.search(schema.get("pattern", ""), text) is not None
