"""Valid settings, their schema, and the error for invalid ones."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, TypeVar, cast, get_type_hints

from pydantic import SecretStr

from app.kernel.config.sections import (
    DURATION_FORM,
    IS_KEY,
    IS_PUBLIC,
    IS_RENEWABLE,
    MAY_BE_EMPTY,
    Section,
    duration_text,
)
from app.kernel.product import NAME
from app.kernel.telemetry.redact import redacted

S = TypeVar("S", bound=Section)
Environment = Literal["local", "test", "staging", "production"]
ENVIRONMENTS: tuple[Environment, ...] = ("local", "test", "staging", "production")
DEFAULT_ENVIRONMENT: Environment = "local"
UNSAFE: tuple[Environment, ...] = ("local", "test")
"""Environments with published secrets and the embedded server."""
BUILT_IN = "built-in"
"""Source of a default in the section."""
NOWHERE = "nowhere"
"""Source of a missing value."""
COMMAND_LINE = "command line"
"""Source of an option of the command."""
_HIDDEN = "********"


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with a setting. Never contains a secret."""

    key: str
    source: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.key} ({self.source}): {self.message}"


class Misconfigured(Exception):
    """The settings are invalid; `problems` lists why. `hint` is what to run next, as in Refusal."""

    hint: str = f"{NAME} doctor --only settings --only secrets"

    def __init__(self, message: str, problems: Iterable[Problem] = (), *, hint: str = "") -> None:
        self.problems = tuple(problems)
        own = [hint, *(problem.hint for problem in self.problems)]
        if any(own):
            self.hint = "\n".join(dict.fromkeys(filter(None, own)))
        elif self.problems and all(problem.source == COMMAND_LINE for problem in self.problems):
            self.hint = ""  # the command line is not what doctor checks
        if len(self.problems) == 1:
            super().__init__(f"{message}: {self.problems[0]}")
            return
        widths = [max((len(getattr(p, name)) for p in self.problems), default=0) for name in ("key", "source")]
        lines = [f"  {p.key:<{widths[0]}}  {p.source:<{widths[1]}}  {p.message}" for p in self.problems]
        super().__init__("\n".join([message, *lines]))


class StoresUnavailable(Misconfigured):
    """Settings cannot be fetched from the store that has them; a later try may succeed."""


class PendingSecret(SecretStr):
    """A secret that is fetched when it is first used, or the error of one that cannot be used. It may be renewed."""

    def __init__(self, fetch: Callable[[], str], known: str | None = None) -> None:
        super().__init__(known or "")
        self._fetch = fetch
        self._fetched = known

    def renew(self, value: str) -> None:
        """Replace the value."""
        self._fetched = value

    @property
    def is_fetched(self) -> bool:
        """Whether the value is known."""
        return self._fetched is not None

    def get_secret_value(self) -> str:
        """Return the secret. Raises Misconfigured, StoresUnavailable. Safe to repeat."""
        if self._fetched is None:
            self._fetched = self._fetch()
        return self._fetched


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the schema: a field of a section."""

    kind: type[Section]
    name: str
    type: Any
    """Type without metadata: str, int, SecretStr."""
    metadata: tuple[Any, ...]
    default: object
    """MISSING when the settings files have the default."""

    @property
    def key(self) -> str:
        """`section.name`."""
        return f"{self.kind.section}.{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable that overrides it."""
        return environment_name(self.key)

    @property
    def description(self) -> str:
        """Description of the setting."""
        return next((item.description for item in self.metadata if getattr(item, "description", None)), "")

    @property
    def is_secret(self) -> bool:
        """Whether its value is secret."""
        return self.type is SecretStr

    @property
    def may_be_empty(self) -> bool:
        """Whether the secret may be empty in every environment."""
        return MAY_BE_EMPTY in self.metadata

    @property
    def is_public(self) -> bool:
        """Whether the URL must be one that other machines can reach."""
        return IS_PUBLIC in self.metadata

    @property
    def is_renewable(self) -> bool:
        """Whether the secret is read again on SIGHUP."""
        return IS_RENEWABLE in self.metadata

    @property
    def is_key(self) -> bool:
        """Whether the secret must be hard to guess."""
        return IS_KEY in self.metadata

    @property
    def range(self) -> str:
        """The range of a number or a duration: `1s to 3650d`."""
        limits = [limit for item in self.metadata for limit in getattr(item, "metadata", ())]
        least = max(limit.ge for limit in limits if hasattr(limit, "ge"))
        most = min(limit.le for limit in limits if hasattr(limit, "le"))
        return f"{self.text(least)} to {self.text(most)}"

    def text(self, value: object) -> str:
        """Return a value in the notation of environment variables; secrets redacted."""
        if isinstance(value, tuple | list):
            return ",".join(map(str, cast("list[object]", value)))
        if isinstance(value, float | int) and DURATION_FORM in self.metadata:
            return duration_text(value)
        if isinstance(value, float):
            return f"{value:.12g}"
        return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class Value:
    """An effective setting with its source and description; secrets redacted."""

    key: str
    value: object
    text: str
    """The value in the notation of environment variables."""
    source: str
    description: str
    secret: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """Validated settings; `settings[PostgresSettings]` is the section of that type."""

    environment: Environment
    sections: Mapping[type[Any], Any] = field(default_factory=dict[type[Any], Any])
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    withheld: Mapping[str, Problem] = field(default_factory=dict[str, Problem])
    """Problems by key, for the processes that use the section; see `demand`."""
    warnings: tuple[Problem, ...] = ()
    misspelt: tuple[Problem, ...] = ()
    """Environment variables that are nearly the name of a setting."""
    hidden: frozenset[str] = frozenset()
    """Keys without a secret type whose values come from a store of secrets."""

    def demand(self, *kinds: type[Section]) -> None:
        """Check the sections that a process uses, and fetch their secrets. Safe to repeat.

        Raises Misconfigured with all problems, StoresUnavailable if all of them are stores that do not answer.
        """
        keys = [setting.key for kind in dict.fromkeys(kinds) for setting in schema(kind)]
        problems = [self.withheld[key] for key in keys if key in self.withheld]
        self._fetch(kinds, problems)

    def fetch_all(self) -> None:
        """Fetch the secrets of all sections that are in a store. Raises like `demand`."""
        self._fetch(tuple(self.sections), [])

    def _fetch(self, kinds: Iterable[type[Any]], problems: list[Problem]) -> None:
        is_final = bool(problems)
        for kind in kinds:
            for setting in schema(kind):
                value: object = getattr(self.sections[kind], setting.name)
                if isinstance(value, PendingSecret) and setting.key not in self.withheld:
                    try:
                        value.get_secret_value()
                    except Misconfigured as error:
                        problems += error.problems
                        is_final = is_final or not isinstance(error, StoresUnavailable)
        if problems:
            raise misconfigured(self.environment, problems, is_final=is_final)

    def is_pending(self, *kinds: type[Section]) -> bool:
        """Return whether `demand` has something to fetch."""
        found = (getattr(self[kind], setting.name) for kind in kinds for setting in schema(kind))
        return any(isinstance(value, PendingSecret) and not value.is_fetched for value in found)

    def __getitem__(self, section: type[S]) -> S:
        return cast("S", self.sections[section])

    def values(self) -> list[Value]:
        """All effective settings in the order of the schema, secrets redacted."""
        found: list[Value] = []
        for kind, section in self.sections.items():
            for setting in schema(kind):
                value: object = getattr(section, setting.name)
                is_secret = setting.is_secret or setting.key in self.hidden
                if isinstance(value, PendingSecret) and not value.is_fetched:
                    value = "" if setting.key in self.withheld else _HIDDEN
                elif isinstance(value, SecretStr):
                    value = _HIDDEN if value.get_secret_value() else ""
                elif is_secret:
                    value = _HIDDEN
                elif isinstance(value, str):
                    value = redacted(value)  # a password in a URL
                text, source = setting.text(value), self.sources.get(setting.key, NOWHERE)
                found.append(Value(setting.key, value, text, source, setting.description, is_secret))
        return found

    def secrets(self) -> list[str]:
        """The secret values that are known by now, and the words of those that are lists."""
        found = [getattr(section, setting.name) for kind, section in self.sections.items() for setting in schema(kind)]
        texts = [
            value.get_secret_value()
            for value in found
            if isinstance(value, SecretStr) and not (isinstance(value, PendingSecret) and not value.is_fetched)
        ]
        return [part for text in texts for part in {text, *text.split()} if part]


@cache
def schema(kind: type[Section]) -> tuple[Setting, ...]:
    """Return the keys of a section."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        Setting(
            kind,
            item.name,
            getattr(hints[item.name], "__origin__", hints[item.name]),
            getattr(hints[item.name], "__metadata__", ()),
            item.default if item.default_factory is MISSING else item.default_factory(),
        )
        for item in fields(cast("Any", kind))
    )


def misconfigured(environment: str, problems: Iterable[Problem], *, is_final: bool = True) -> Misconfigured:
    """Return the error that reports problems; unless `is_final`, a later try may succeed."""
    found = tuple(problems)
    count = f": {len(found)} problems" if len(found) > 1 else ""
    kind = Misconfigured if is_final else StoresUnavailable
    return kind(f"settings for APP_ENV={environment}{count}", found)


def environment_name(key: str) -> str:
    """Return the environment variable that overrides `section.key`."""
    return key.replace(".", "_").upper()


def current_environment(environ: Mapping[str, str]) -> Environment:
    """Return the value of APP_ENV. Raises Misconfigured unless it is one of ENVIRONMENTS."""
    name = environ.get("APP_ENV", DEFAULT_ENVIRONMENT)
    for known in ENVIRONMENTS:
        if name == known:
            return known
    near = get_close_matches(name.strip().lower(), ENVIRONMENTS, 1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    if not name.strip():
        hint = f"; unset it for {DEFAULT_ENVIRONMENT}"
    raise Misconfigured(
        f"APP_ENV is {name!r}, expected one of {', '.join(ENVIRONMENTS)}{hint}",
        hint=f"export APP_ENV={near[0]}" if near else "unset APP_ENV",
    )
