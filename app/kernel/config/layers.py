"""Reads the layers of settings and validates them as a whole."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from app.kernel.config.files import read, read_value
from app.kernel.config.safety import exposure, why_guessable
from app.kernel.config.sections import Section
from app.kernel.config.settings import (
    BUILT_IN,
    UNSAFE,
    Environment,
    Misconfigured,
    Problem,
    Setting,
    Settings,
    current_environment,
    schema,
)

Lookup = Callable[[str], tuple[str, str] | None]
"""Returns the text of a variable such as POSTGRES_PASSWORD, and its source. Raises NotReadable."""

_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
_SHOWN = 80
_DIGITS = re.compile(r"-?(0|[1-9][0-9]*)", re.ASCII)
_FALSE = ("false", "0", "off", "no", "n", "f")  # as pydantic reads them
_RANDOM = ", such as the output of `openssl rand -base64 32`"


class NotReadable(Exception):
    """The value of a variable cannot be read."""

    def __init__(self, source: str, message: str) -> None:
        super().__init__(message)
        self.source = source


def load(
    root: Path,
    sections: Iterable[type[Section]],
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, object] | None = None,
    *,
    uses_secrets: bool = True,
    secrets: Lookup | None = None,
) -> Settings:
    """Read and validate all layers.

    `root` has the folder `settings`; `overrides` maps `section.key` to the value of a command option; `secrets` looks
    secrets up outside the environment. Without `uses_secrets`, the published defaults are accepted.
    Raises Misconfigured with all problems. Safe to repeat.
    """
    settings, error = load_valid(root, sections, environ, overrides, uses_secrets=uses_secrets, secrets=secrets)
    if error is not None:
        raise error
    return settings


def load_valid(
    root: Path,
    sections: Iterable[type[Section]],
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, object] | None = None,
    *,
    uses_secrets: bool = True,
    secrets: Lookup | None = None,
) -> tuple[Settings, Misconfigured | None]:
    """Read and validate all layers; return the valid sections, and the error that `load` raises.

    Raises Misconfigured when APP_ENV or a file cannot be read at all.
    """
    layers = _Layers(root, sections, environ)
    layers.add_files()
    layers.find_unknown()
    layers.add_variables(from_environment(environ), secrets)
    for key, value in (overrides or {}).items():
        layers.set(layers.schema[key], value, "command line")
    built = {kind: layers.build(kind) for kind in layers.kinds}
    layers.check_secrets(uses_secrets)
    valid = Settings(layers.environment, {k: v for k, v in built.items() if v is not None}, layers.sources)
    if not layers.problems:
        return valid, None
    count = f": {len(layers.problems)} problems" if len(layers.problems) > 1 else ""
    return valid, Misconfigured(f"settings for APP_ENV={layers.environment}{count}", layers.problems)


def from_environment(environ: Mapping[str, str]) -> Lookup:
    """Return a lookup in the environment, and in the file that `VARIABLE_FILE` names."""

    def lookup(variable: str) -> tuple[str, str] | None:
        file = environ.get(f"{variable}_FILE")
        if variable in environ:
            if file:
                raise NotReadable(variable, f"{variable}_FILE is set too; keep one of them")
            return environ[variable], variable
        if not file:
            return None
        try:
            return read_value(file), f"{variable}_FILE"
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise NotReadable(f"{variable}_FILE", f"cannot read {file}: {reason}") from None

    return lookup


class _Layers:
    """Values with their sources, and the problems found."""

    def __init__(self, root: Path, sections: Iterable[type[Section]], environ: Mapping[str, str]) -> None:
        self.folder = root / "settings"
        self.environment: Environment = current_environment(environ)
        self.kinds = list(sections)
        self.schema = {setting.key: setting for kind in self.kinds for setting in schema(kind)}
        self.tree: defaultdict[str, dict[str, object]] = defaultdict(dict)
        self.sources: dict[str, str] = {}
        self.numbers: dict[str, str] = {}
        self.published: defaultdict[str, list[str]] = defaultdict(list)
        self.problems: list[Problem] = []
        for setting in self.schema.values():
            if setting.default is not MISSING:
                self.set(setting, setting.default, BUILT_IN)

    def set(self, setting: Setting, value: object, source: str) -> None:
        self.tree[setting.kind.section][setting.name] = value
        self.sources[setting.key] = source
        self.numbers.pop(setting.key, None)

    def value(self, setting: Setting) -> object:
        return self.tree[setting.kind.section].get(setting.name)

    def refuse(self, key: str, message: str, source: str = "") -> None:
        self.problems.append(Problem(key, source or self.sources.get(key, "nowhere"), message))

    def add_files(self) -> None:
        """Add the files. A key replaces the same key of an earlier file."""
        committed = {self.folder / f"{name}.yaml" for name in ("default", *UNSAFE)}
        layers = [self.folder / "default.yaml", self.folder / f"{self.environment}.yaml"]
        if os.path.lexists(secrets := self.folder / ".secrets.yaml"):  # lexists: report a broken link
            layers.append(secrets)
        others = [path for path in committed.difference(layers) if path.is_file()]
        for path, file in read([*layers, *others]).items():
            for name, section in file.content.items():
                if not isinstance(section, dict):
                    if path in layers:
                        self.refuse(name, "expected a section with keys below it", file.label)
                    continue
                for key, value in cast("dict[str, object]", section).items():
                    full = f"{name}.{key}"
                    if path in committed:
                        self.published[full].append(str(value))
                    if path in layers:
                        self.tree[name][key], self.sources[full] = value, file.label
                        if isinstance(value, int | float) and full in file.texts:
                            self.numbers[full] = file.texts[full]

    def find_unknown(self) -> None:
        for key in [f"{name}.{key}" for name, section in self.tree.items() for key in section]:
            if key not in self.schema:
                near = get_close_matches(key, self.schema, 1)
                self.refuse(key, f"unknown key; did you mean {near[0]}?" if near else "unknown key")

    def add_variables(self, environment: Lookup, secrets: Lookup | None) -> None:
        for setting in self.schema.values():
            lookup = secrets if secrets and setting.is_secret else environment
            try:
                if found := lookup(setting.variable):
                    self.set(setting, *found)
            except NotReadable as error:
                self.refuse(setting.key, str(error), error.source)

    def build(self, kind: type[Section]) -> object:
        """Return the section, or None when it is invalid."""
        known = {s.name: self._as_written(s) for s in schema(kind) if s.name in self.tree[kind.section]}
        try:
            return TypeAdapter(kind).validate_python(known)
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                setting = self.schema[f"{kind.section}.{problem['loc'][0]}"]
                missing = setting.is_secret and not setting.may_be_empty and not self.value(setting)
                if self.environment in UNSAFE or not missing:
                    self._explain(setting, dict(problem))
        return None

    def _as_written(self, setting: Setting) -> object:
        """Return the value to validate; an integer must be written in digits.

        Python and pydantic accept true for 1, and 1_000, +5, 5.0 and digits of other scripts.
        """
        value = self.value(setting)
        if isinstance(value, bool) and setting.type in (int, float):
            return str(value).lower()
        written = value if isinstance(value, str) else self.numbers.get(setting.key)
        if setting.type is not int or written is None or _DIGITS.fullmatch(written):
            return value
        return _Miswritten(written)

    def _explain(self, setting: Setting, error: dict[str, Any]) -> None:
        if error["type"] == "missing":
            self.refuse(setting.key, f"missing; set {setting.variable}", "nowhere")
            return
        value, message = (
            error["input"],
            str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be "),
        )
        if isinstance(value, _Miswritten):
            value = value.text
            message = "a valid integer, unable to parse string as an integer (digits only, such as 10)"
        elif error["type"] in _OUT_OF_RANGE:
            message = setting.range
        elif error["type"] in ("too_short", "string_too_short"):
            least = error["ctx"]["min_length"]
            message = "a non-empty value" if least == 1 else f"at least {least} characters"
        expected = message if message.startswith("expected") else f"expected {message}"
        # a mapping may contain a misplaced secret
        shown = repr(value)[:_SHOWN] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
        self.refuse(setting.key, expected + ("" if setting.is_secret else f", got {shown}"))

    def check_secrets(self, uses_secrets: bool) -> None:
        """Refuse settings that are safe only on an unreachable laptop: no server, debugging, published secrets."""
        wrong = {problem.key for problem in self.problems}
        exposed = uses_secrets and exposure(self.tree)
        for setting in self.schema.values():
            key, value, text = setting.key, self.value(setting), str(self.value(setting) or "")
            change = f"set {setting.variable}{_RANDOM if setting.is_key else ''}"
            if self.environment in UNSAFE:
                if exposed and setting.is_key and (why := why_guessable(text, self.published[key], key=True)):
                    self.refuse(key, f"{why}, but {exposed}; {change}")
            elif key == "http_server.debug" and str(value).lower() not in _FALSE:
                self.refuse(key, "must be false outside local and test")
            elif key == "postgres.host" and not value:
                self.refuse(key, f"the embedded server is for local and test only; {change}")
            elif not setting.is_secret or (not text.strip() and setting.may_be_empty) or key in wrong:
                continue
            elif not value:
                self.refuse(key, f"missing secret; set {setting.variable} or {setting.variable}_FILE")
            elif why := why_guessable(text, self.published[key], key=setting.is_key):
                self.refuse(key, f"{why}; {change}")


@dataclass(frozen=True, slots=True)
class _Miswritten:
    """A value that is not a valid integer."""

    text: str
