"""Parameters of commands, derived from the fields of inputs."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from annotated_types import Interval

from app.kernel.cli import moment, seconds
from app.kernel.decoding import name_outside
from app.kernel.fields import Doc, IdOf, NameOf, Option

T = TypeVar("T")
_PART_OF_ID = re.compile(r"(?!.{36})(-*[0-9a-fA-F]){4,32}-*", re.ASCII)
_DAY_S = 86400
_JSON = (dict, frozenset, list, set, tuple)
_METAVARS = {"duration": "DURATION", "age": "DURATION", "json": "JSON"}


@dataclass(frozen=True)
class Parameter:
    """A field of an input on the command line. `name` is the field, `option` the name of the option or argument."""

    name: str
    option: str
    is_argument: bool
    is_flag: bool
    default: Any
    help: str
    metavar: str
    parser: Callable[[str], str] | None
    id_of: IdOf | None
    name_of: NameOf | None
    about: Option

    @classmethod
    def of(cls, item: "Field[Any]", hint: Any, in_path: bool) -> "Parameter":
        """Return the parameter of a field."""
        parts = list(_parts(hint))
        about, doc = _first(parts, Option) or Option(), _first(parts, Doc)
        default = item.default if item.default_factory is MISSING else None
        is_argument = in_path or about.is_argument
        option = about.name or name_outside(item.name).replace("_", "-")
        parser = _parser(about, parts)
        return cls(
            item.name,
            option,
            is_argument,
            bool in parts,
            default if about.default is None else about.default,
            _help(doc.text if doc else "", default, parts, about),
            option.upper() if is_argument else _METAVARS.get(about.form) or _metavar(parts),
            parser,
            _first(parts, IdOf),
            _first(parts, NameOf),
            about,
        )

    @property
    def hint(self) -> str:
        """Its name in messages."""
        return self.option.upper() if self.is_argument else f"--{self.option}"

    @property
    def switch(self) -> str:
        """The declaration of a flag: one that is set by default has a second option, which unsets it."""
        return f"--{self.option}/--no-{self.option}" if self.default is True else f"--{self.option}"

    def declared(self, *, is_optional: bool) -> inspect.Parameter:
        """Return it for the signature of the command; `is_optional` if another one may replace it."""
        required = self.default is MISSING and not self.about.none and not is_optional
        if self.is_flag:
            shown: Any = typer.Option(self.switch, help=self.help)
        elif self.is_argument:
            shown = typer.Argument(help=self.help, metavar=self.metavar, show_default=False)
        else:
            shown = typer.Option(
                f"--{self.option}", help=self.help, metavar=self.metavar, parser=self.parser, show_default=False
            )
        kind: Any = bool if self.is_flag else str if required else str | None
        default = inspect.Parameter.empty if required else self.default if self.is_flag else None
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown]
        )

    def text(self, options: dict[str, Any]) -> str | None:
        """Return the text to decode; None if it is absent. Raises BadParameter."""
        value = options.get(self.name)
        if self.about.none:
            if (value is None) != bool(options[f"no_{self.name}"]):
                raise typer.BadParameter("give either a number or --none", param_hint=self.hint)
            return "1" if value is None else value
        return str(value).lower() if isinstance(value, bool) else value

    def is_none(self, options: dict[str, Any]) -> bool:
        """Return whether null was given."""
        return bool(options.get(f"no_{self.name}"))

    def is_part(self, text: str) -> bool:
        """Return whether the text is a part of an id."""
        return self.id_of is not None and _PART_OF_ID.fullmatch(text) is not None

    def is_filter(self, given: Any) -> bool:
        """Return whether it was given and filters a list."""
        return self.name not in ("limit", "cursor") and not self.is_flag and getattr(given, self.name) is not None

    def note(self, given: Any) -> str:
        """Return the note about rows that the list omits because of an absent flag."""
        return self.about.note if self.is_flag and getattr(given, self.name) == self.about.default else ""


def flag(name: str, option: str, text: str) -> inspect.Parameter:
    """Return a flag that is not a field."""
    shown: Any = typer.Option(option, help=text)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=False, annotation=Annotated[bool, shown])


def _parts(hint: Any) -> Iterator[Any]:
    """Yield a type, its annotations, outermost first, and the types inside it."""
    yield hint
    if get_origin(hint) is not Literal:
        for part in reversed(get_args(hint)):
            yield from _parts(part)


def _metavar(parts: list[Any]) -> str:
    kinds = [get_origin(part) or part for part in parts]
    is_json = any(kind in _JSON or (isinstance(kind, type) and is_dataclass(kind)) for kind in kinds)
    return "JSON" if is_json else "TIME" if datetime in parts else "TEXT"


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the values of a Literal or an Enum as texts; none of another type."""
    if get_origin(hint) is Literal:
        return tuple(map(str, get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return tuple(str(each.value) for each in hint)
    return ()


def _first(parts: list[Any], kind: type[T]) -> T | None:
    return next((part for part in parts if isinstance(part, kind)), None)


def _help(text: str, default: Any, parts: list[Any], about: Option) -> str:
    choices = next((found for part in parts if (found := choices_of(part))), ())
    if choices:
        text = f"{text} One of {', '.join(choices)}."
    if default not in (None, MISSING) and bool not in parts:
        plain = default.value if isinstance(default, Enum) else default
        shown = f"{plain / _DAY_S:g}d" if about.form == "duration" else plain
        text = f"{text} Default: {shown}."
    return text


def _parser(about: Option, parts: list[Any]) -> Callable[[str], str] | None:
    """Return the conversion of a text on the command line to the notation of requests."""
    if about.form == "age":
        age = seconds()
        return lambda text: (datetime.now(UTC) - timedelta(seconds=age(text))).isoformat()
    if about.form == "json":
        return lambda text: sys.stdin.read() if text == "-" else text
    if about.form == "duration":
        bounds: Any = _first(parts, Interval)
        duration = seconds(least_s=bounds.ge, most_days=int(bounds.le // _DAY_S))
        return lambda text: f"{duration(text):.3f}"
    return (lambda text: moment(text).isoformat()) if _metavar(parts) == "TIME" else None
