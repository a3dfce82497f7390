"""Settings once they are valid, and what is said when they are not."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, TypeVar, cast, get_type_hints

from pydantic import SecretStr

from app.kernel.config.sections import DURATION_FORM, IS_KEY, MAY_BE_EMPTY, Section

S = TypeVar("S", bound=Section)
Environment = Literal["local", "test", "staging", "production"]
ENVIRONMENTS: tuple[Environment, ...] = ("local", "test", "staging", "production")
DEFAULT_ENVIRONMENT: Environment = "local"
_UNITS = (("d", 86400.0), ("h", 3600.0), ("m", 60.0))
UNSAFE: tuple[Environment, ...] = ("local", "test")
"""Where nothing has to be secret, and a server may be embedded."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the settings. Never holds a secret."""

    key: str
    source: str
    message: str


class Misconfigured(Exception):
    """The settings cannot be used. `problems` lists everything that is wrong."""

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            [only] = self.problems
            super().__init__(f"{message}: {only.key} ({only.source}): {only.message}")
            return
        widths = [max((len(getattr(p, name)) for p in self.problems), default=0) for name in ("key", "source")]
        lines = [f"  {p.key:<{widths[0]}}  {p.source:<{widths[1]}}  {p.message}" for p in self.problems]
        super().__init__("\n".join([message, *lines]))


@dataclass(frozen=True, slots=True)
class Value:
    """An effective setting: what it is, where it came from, what it means. A secret is already redacted."""

    key: str
    value: object
    source: str
    description: str
    secret: bool
    is_duration: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """Validated settings; `settings[PostgresSettings]` is the section of that type."""

    environment: Environment
    sections: Mapping[type[Any], Any] = field(default_factory=dict[type[Any], Any])
    sources: Mapping[str, str] = field(default_factory=dict[str, str])

    def __getitem__(self, section: type[S]) -> S:
        return cast("S", self.sections[section])

    def values(self) -> list[Value]:
        """Every effective setting, in the order of the schema, secrets redacted."""
        return [
            Value(
                key := f"{kind.section}.{name}",
                _shown(getattr(section, name)),
                self.sources.get(key, "settings/default.yaml"),
                description,
                isinstance(getattr(section, name), SecretStr),
                DURATION_FORM in getattr(hints(kind)[name], "__metadata__", ()),
            )
            for kind, section in self.sections.items()
            for name, description in describe(kind).items()
        ]

    def secrets(self) -> list[str]:
        """The values that must never be shown, and the words of those that are lists."""
        found = [getattr(section, name) for kind, section in self.sections.items() for name in describe(kind)]
        texts = [value.get_secret_value() for value in found if isinstance(value, SecretStr)]
        return [part for text in texts for part in {text, *text.split()} if part]


def _shown(value: object) -> object:
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    return value


@cache
def hints(kind: type[Any]) -> dict[str, Any]:
    """Return the annotations of a section, with their metadata."""
    return get_type_hints(kind, include_extras=True)


def describe(kind: type[Section]) -> dict[str, str]:
    """Return the keys of a section with what each means."""
    found: dict[str, str] = {}
    for item in fields(cast("Any", kind)):
        metadata = getattr(hints(kind)[item.name], "__metadata__", ())
        found[item.name] = next((m.description for m in metadata if getattr(m, "description", None)), "")
    return found


def range_of(kind: type[Section], name: str) -> str:
    """Return the range of a number or a duration, as people write it: `1s to 3650d`."""
    found: list[Any] = []
    is_duration = False
    for item in getattr(hints(kind)[name], "__metadata__", ()):
        found += getattr(item, "metadata", ())
        is_duration = is_duration or item is DURATION_FORM
    least = max(limit for item in found if (limit := getattr(item, "ge", None)) is not None)
    most = min(limit for item in found if (limit := getattr(item, "le", None)) is not None)
    return " to ".join(duration(limit) if is_duration else f"{limit:.15g}" for limit in (least, most))


def duration(seconds: float) -> str:
    """Return a duration as settings have it, in the largest unit that leaves no fraction: `90s`, `12h`, `400d`."""
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds and seconds % size == 0), ("s", 1.0))
    return f"{seconds / size:.12g}{unit}"


def is_secret(kind: type[Section], name: str) -> bool:
    """Return whether a key of a section is never shown."""
    hint = hints(kind)[name]
    return hint is SecretStr or getattr(hint, "__origin__", None) is SecretStr


def may_be_empty(kind: type[Section], name: str) -> bool:
    """Return whether a key that is a secret may be left empty everywhere."""
    return MAY_BE_EMPTY in getattr(hints(kind)[name], "__metadata__", ())


def is_key(kind: type[Section], name: str) -> bool:
    """Return whether a secret must be as hard to guess as a key."""
    return IS_KEY in getattr(hints(kind)[name], "__metadata__", ())


def environment_name(key: str) -> str:
    """Return the environment variable that overrides `section.key`."""
    return key.replace(".", "_").upper()


def current_environment(environ: Mapping[str, str]) -> Environment:
    """Return the value of APP_ENV. Raises Misconfigured when it is none of ENVIRONMENTS."""
    name = environ.get("APP_ENV", DEFAULT_ENVIRONMENT)
    for known in ENVIRONMENTS:
        if name == known:
            return known
    near = get_close_matches(name.strip().lower(), ENVIRONMENTS, 1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    if not name.strip():
        hint = f"; unset it for {DEFAULT_ENVIRONMENT}"
    raise Misconfigured(f"APP_ENV is {name!r}, expected one of {', '.join(ENVIRONMENTS)}{hint}")
