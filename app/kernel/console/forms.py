"""Forms of the console, derived from the inputs of actions as options of commands are."""

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from dataclasses import Field as DataclassField
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import typer
from annotated_types import Interval, Len

from app.kernel.actions.operation import ActionOperation
from app.kernel.actions.parameters import Parameter, choices_of
from app.kernel.decoding import Decoder, name_outside
from app.kernel.errors import Invalid
from app.kernel.fields import Choices, Doc
from app.kernel.http.routes import path_parameters
from app.kernel.paging import Page

Kind = Literal["text", "number", "checkbox", "select", "lines", "json", "password", "hidden"]


@dataclass(frozen=True)
class Field:
    """A field of a form. `name` is its external name; `parameter` is the same field on the command line."""

    name: str
    label: str
    kind: Kind
    parameter: Parameter
    options: tuple[str, ...] = ()
    required: bool = False
    is_nullable: bool = False
    in_path: bool = False
    most: int | None = None
    least: float | None = None
    greatest: float | None = None
    hint: str = ""
    choices: Choices | None = None
    is_paging: bool = False
    """Whether it selects a page of a list, or where a batch begins."""


class Form:
    """The form of an action's input."""

    def __init__(self, operation: ActionOperation) -> None:
        kind = operation.signature.input
        self._kind = kind
        self.fields: tuple[Field, ...] = ()
        self._decoder: Decoder[Any] | None = None
        if kind is None:
            return
        if is_dataclass(kind):
            hints, in_path = get_type_hints(kind, include_extras=True), path_parameters(operation.action.path)
            paging = ("cursor",) if operation.action.changes else ("cursor", "limit")
            self.fields = tuple(_field(item, hints[item.name], in_path, paging) for item in fields(kind))
        self._decoder = Decoder[Any](kind)

    @property
    def asked(self) -> tuple[Field, ...]:
        """The fields that a person fills in."""
        return tuple(field for field in self.fields if not field.in_path and not field.is_paging)

    @property
    def can_be_shown(self) -> bool:
        """Whether the input is a record of fields, or there is none."""
        return self._kind is None or is_dataclass(self._kind)

    def decode(self, texts: Mapping[str, str]) -> Any:
        """Return the input from the texts of a form or an address; unknown ones are ignored. Raises Invalid."""
        if self._decoder is None:
            return None
        values: dict[str, str] = {}
        none: dict[str, None] = {}
        problems: list[tuple[str, str]] = []
        for field in self.fields:
            text = texts.get(field.name, "")
            if field.kind == "checkbox":
                text = "true" if text else "false"
            try:
                if text:
                    values[field.name] = _value(field, text)
                elif field.required and field.is_nullable:
                    values[field.name], none[field.parameter.name] = "1", None
                elif field.kind == "lines" and field.required:
                    values[field.name] = "[]"
            except typer.BadParameter as error:
                problems.append((field.name, str(error)))
        if problems:
            raise Invalid("the input is invalid; see errors", tuple(problems))
        given = self._decoder.text(values)
        return replace(given, **none) if none else given

    def texts(self, record: object) -> dict[str, str]:
        """Return the texts of a record's fields that have the names of the form's fields, to begin with."""
        if isinstance(record, Page):  # the list that the change replaces
            rows = cast("Page[Any]", record).items
            listed = {f.name: [getattr(row, f.choices.value) for row in rows] for f in self.asked if f.choices}
            return {name: text_of(values) for name, values in listed.items()}
        names = [(field.name, field.parameter.name) for field in self.asked]
        return {name: text_of(getattr(record, own)) for name, own in names if hasattr(record, own)}


def text_of(value: object) -> str:
    """Return a value as the text of a field."""
    if value is None:
        return ""
    if isinstance(value, Enum):
        value = cast("object", value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list | tuple | set | frozenset):
        return "\n".join(map(str, cast("list[object]", value)))
    if isinstance(value, dict):
        return json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return str(value)


def lines_of(text: str) -> list[str]:
    """Return the lines of a text without empty ones."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _value(field: Field, text: str) -> str:
    if field.kind == "lines":
        return json.dumps(lines_of(text))
    return field.parameter.parser(text.strip()) if field.parameter.parser else text


def _field(item: "DataclassField[Any]", hint: Any, path: list[str], paging: tuple[str, ...]) -> Field:
    parameter, annotations = Parameter.of(item, hint, item.name in path), list(_annotations(hint))
    plain, is_nullable = _plain(hint)
    doc = next((a.text for a in annotations if isinstance(a, Doc)), "")
    length = next((a for a in annotations if isinstance(a, Len)), None)
    bounds = next((a for a in annotations if isinstance(a, Interval)), None)
    kind, options = _kind(item, plain, is_nullable=is_nullable, default=parameter.default)
    is_plain_text, form = kind in ("text", "password"), parameter.about.form
    label = parameter.option.replace("-", " ") if form else item.name.removesuffix("_").replace("_", " ")
    return Field(
        name=name_outside(item.name),
        label=label.capitalize(),
        kind=kind,
        parameter=parameter,
        options=options,
        required=item.default is MISSING and item.default_factory is MISSING,
        is_nullable=is_nullable,
        in_path=item.name in path,
        most=length.max_length if length and is_plain_text and not parameter.parser else None,
        least=cast("Any", bounds).ge if bounds and kind == "number" and not form else None,
        greatest=cast("Any", bounds).le if bounds and kind == "number" and not form else None,
        hint=_hint(doc, kind, parameter),
        choices=next((a for a in annotations if isinstance(a, Choices)), None),
        is_paging=item.name in paging,
    )


def _hint(doc: str, kind: Kind, parameter: Parameter) -> str:
    more = ""
    if kind == "json":
        more = "JSON."
    elif parameter.about.form:
        more = "A duration such as 12h or 7d."
    elif parameter.parser:
        more = "A time such as 2026-11-22T10:00:00Z, or a day."
    elif kind == "lines":
        more = "One per line."
    if kind in ("number", "select") and parameter.default not in (None, MISSING):
        shown = f"{parameter.default:g}" if kind == "number" else text_of(parameter.default)
        more = f"{more} Default: {shown}.".strip()
    return f"{doc} {more}".strip()


def _kind(
    item: "DataclassField[Any]", plain: Any, *, is_nullable: bool, default: object
) -> tuple[Kind, tuple[str, ...]]:
    if choices := choices_of(plain):
        return "select", choices
    if plain is bool:
        is_three = is_nullable or default is not False
        return ("select", ("true", "false")) if is_three else ("checkbox", ())
    if plain in (int, float):
        return "number", ()
    if get_origin(plain) in (list, tuple, set, frozenset) and _is_text(get_args(plain)[0]):
        return "lines", ()
    if get_origin(plain) is not None or plain is Any or is_dataclass(plain) or plain in (dict, list):
        return "json", ()
    return ("text" if item.repr else "password"), ()


def _is_text(hint: Any) -> bool:
    plain, _ = _plain(hint)
    others = (bool, dict, float, int, list, object)
    return isinstance(plain, type) and not is_dataclass(plain) and plain not in others


def _plain(hint: Any) -> tuple[Any, bool]:
    """Return a type without annotations and None, and whether None was there."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        others = [part for part in get_args(hint) if part is not types.NoneType]
        if len(others) == 1:
            return _plain(others[0])[0], True
        return Any, types.NoneType in get_args(hint)
    return hint, False


def _annotations(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Annotated:
        inner, *found = get_args(hint)
        yield from found
        yield from _annotations(inner)
    elif get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _annotations(part)
