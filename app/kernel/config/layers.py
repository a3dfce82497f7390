"""Reads the layers of settings and validates them as a whole."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from app.kernel.config.files import read, read_value
from app.kernel.config.safety import exposure, why_guessable
from app.kernel.config.sections import Section
from app.kernel.config.settings import (
    UNSAFE,
    Environment,
    Misconfigured,
    Problem,
    Settings,
    current_environment,
    describe,
    environment_name,
    hints,
    is_key,
    is_secret,
    may_be_empty,
    range_of,
)

_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
_SHOWN = 80
_DIGITS = re.compile(r"-?(0|[1-9][0-9]*)", re.ASCII)
_FALSE = ("false", "0", "off", "no", "n", "f")  # as pydantic reads them


def load(
    root: Path,
    sections: Iterable[type[Section]],
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, object] | None = None,
    *,
    uses_secrets: bool = True,
) -> Settings:
    """Read and validate all layers.

    `root` holds the folder `settings`; `overrides` maps `section.key` to the value of a command's option. What does not
    use secrets may have the published ones wherever it runs.
    Raises Misconfigured with every problem found. Safe to repeat; reads only.
    """
    environment = current_environment(environ)
    kinds = {kind.section: kind for kind in sections}
    tree, sources, numbers, problems = _layers(root, environment)
    problems += _unknown(kinds, tree, sources)
    for name, kind in kinds.items():
        section = tree.setdefault(name, {})
        for key in describe(kind):
            problems += _overlay(f"{name}.{key}", section, sources, environ, overrides or {})
    numbers = {full: text for full, text in numbers.items() if full not in (overrides or {})}
    built: dict[type[Any], Any] = {}
    for name, kind in kinds.items():
        known = {
            key: _counted(
                kind, key, value, numbers.get(full) if (full := f"{name}.{key}") not in (overrides or {}) else None
            )
            for key, value in tree[name].items()
            if key in describe(kind)
        }
        try:
            built[kind] = TypeAdapter(kind).validate_python(known)
        except ValidationError as error:
            problems += [
                _explain(kind, dict(e), sources)
                for e in error.errors(include_url=False)
                if environment in UNSAFE or not _is_missing_secret(kind, tree[name], str(e["loc"][0]))
            ]
    if environment not in UNSAFE:
        problems += _required(root, kinds, tree, sources, {problem.key for problem in problems})
    elif uses_secrets and (exposed := exposure(tree)):
        problems += _keys_of_its_own(root, kinds, tree, sources, exposed)
    if problems:
        count = f": {len(problems)} problems" if len(problems) > 1 else ""
        raise Misconfigured(f"settings for APP_ENV={environment}{count}", problems)
    return Settings(environment, built, sources)


def _layers(
    root: Path, environment: Environment
) -> tuple[dict[str, dict[str, object]], dict[str, str], dict[str, str], list[Problem]]:
    folder = root / "settings"
    files = [folder / "default.yaml", folder / f"{environment}.yaml"]
    if os.path.lexists(secrets := folder / ".secrets.yaml"):  # a link that leads nowhere must not go unnoticed
        files.append(secrets)
    tree: dict[str, dict[str, object]] = {}
    sources: dict[str, str] = {}
    numbers: dict[str, str] = {}
    problems: list[Problem] = []
    for file in read(files):
        for name, section in file.content.items():
            if not isinstance(section, dict):
                problems.append(Problem(name, file.label, "expected a section with keys below it"))
                continue
            layer = tree.setdefault(name, {})
            for key, value in cast("dict[str, object]", section).items():
                full = f"{name}.{key}"
                if key not in layer or layer[key] != value:  # Dynaconf merges `section.key: value` itself
                    layer[key], sources[full] = value, file.label
                if isinstance(value, int | float) and full in file.texts:
                    numbers[full] = file.texts[full]
    return tree, sources, numbers, problems


def _unknown(
    kinds: Mapping[str, type[Section]], tree: Mapping[str, Mapping[str, object]], sources: Mapping[str, str]
) -> list[Problem]:
    everything = [f"{name}.{key}" for name, kind in kinds.items() for key in describe(kind)]
    problems: list[Problem] = []
    for name, section in tree.items():
        for key in section:
            full = f"{name}.{key}"
            if full in everything:
                continue
            near = get_close_matches(full, everything, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(Problem(full, sources.get(full, ""), f"unknown key{hint}"))
    return problems


def _overlay(
    key: str,
    section: dict[str, object],
    sources: dict[str, str],
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
) -> list[Problem]:
    name, variable = key.partition(".")[2], environment_name(key)
    if key in overrides:
        section[name], sources[key] = overrides[key], "command line"
        return []
    file = environ.get(f"{variable}_FILE")
    if variable in environ:
        section[name], sources[key] = environ[variable], variable
        return [Problem(key, variable, f"{variable}_FILE is set too; keep one of them")] if file else []
    if file:
        sources[key] = f"{variable}_FILE"
        try:
            section[name] = read_value(file)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            return [Problem(key, sources[key], f"cannot read {file}: {reason}")]
    return []


def _explain(kind: type[Section], error: dict[str, Any], sources: Mapping[str, str]) -> Problem:
    name = str(error["loc"][0])
    key = f"{kind.section}.{name}"
    if error["type"] == "missing":
        return Problem(key, "nowhere", f"missing; set {environment_name(key)}")
    value = error["input"]
    if isinstance(value, _Miswritten):
        expected = "expected a valid integer, unable to parse string as an integer (digits only, such as 10)"
        return Problem(key, sources.get(key, "nowhere"), f"{expected}, got {value}")
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] in _OUT_OF_RANGE:
        message = range_of(kind, name)
    elif error["type"] in ("too_short", "string_too_short"):
        least = error["ctx"]["min_length"]
        message = "something, not nothing" if least == 1 else f"at least {least} characters"
    expected = message if message.startswith("expected") else f"expected {message}"
    # what stands below a misplaced key may be a secret
    shown = repr(value)[:_SHOWN] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    shown = "" if is_secret(kind, name) else f", got {shown}"
    return Problem(key, sources.get(key, "nowhere"), expected + shown)


def _required(
    root: Path,
    kinds: Mapping[str, type[Section]],
    tree: Mapping[str, Mapping[str, object]],
    sources: Mapping[str, str],
    wrong: Set[str],
) -> list[Problem]:
    """What is fine on a laptop and refused elsewhere: no server, debugging, secrets missing or known to everybody."""
    published = _published(root)
    problems: list[Problem] = []
    for name, kind in kinds.items():
        for key in describe(kind):
            full = f"{name}.{key}"
            value, source, variable = tree[name].get(key), sources.get(full, "nowhere"), environment_name(full)
            if full == "http_server.debug" and str(value).lower() not in _FALSE:
                problems.append(Problem(full, source, "must be false outside local and test"))
            elif full == "postgres.host" and not value:
                problems.append(Problem(full, source, f"nothing is embedded outside local and test; set {variable}"))
            elif not is_secret(kind, key) or (not str(value or "").strip() and may_be_empty(kind, key)):
                continue
            elif not value:
                problems.append(Problem(full, source, f"missing secret; set {variable} or {variable}_FILE"))
            elif full not in wrong and (why := why_guessable(str(value), published[full], key=is_key(kind, key))):
                problems.append(Problem(full, source, f"{why}; {_set(kind, key, variable)}"))
    return problems


def _keys_of_its_own(
    root: Path,
    kinds: Mapping[str, type[Section]],
    tree: Mapping[str, Mapping[str, object]],
    sources: Mapping[str, str],
    exposed: str,
) -> list[Problem]:
    """What is fine on a laptop that nobody else gets at, and refused where others do: keys that everybody knows."""
    published = _published(root)
    return [
        Problem(full, sources.get(full, "nowhere"), f"{why}, but {exposed}; {_set(kind, key, environment_name(full))}")
        for name, kind in kinds.items()
        for key in describe(kind)
        if is_key(kind, key)
        and (why := why_guessable(str(tree[name].get(key) or ""), published[full := f"{name}.{key}"], key=True))
    ]


def _set(kind: type[Section], key: str, variable: str) -> str:
    example = ", such as the output of `openssl rand -base64 32`" if is_key(kind, key) else ""
    return f"set {variable}{example}"


def _published(root: Path) -> Mapping[str, list[str]]:
    """Return the values that stand in files that are committed, by key."""
    files = [root / "settings" / f"{name}.yaml" for name in ("default", *UNSAFE)]
    found: defaultdict[str, list[str]] = defaultdict(list)
    for file in read([file for file in files if file.is_file()]):
        for name, section in file.content.items():
            if isinstance(section, dict):
                for key, value in cast("dict[str, object]", section).items():
                    found[f"{name}.{key}"].append(str(value))
    return found


def _is_missing_secret(kind: type[Section], section: Mapping[str, object], name: str) -> bool:
    return is_secret(kind, name) and not may_be_empty(kind, name) and not section.get(name)


def _counted(kind: type[Section], name: str, value: object, written: str | None) -> object:
    """Return the value as it is to be checked: a number as it was written, if it was.

    Python and pydantic take true for 1, and 1_000, +5, 5.0 and digits of other scripts for whole numbers.
    """
    hint = hints(kind)[name]
    numeric = getattr(hint, "__origin__", hint)
    if numeric not in (int, float):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    text = value if isinstance(value, str) else written
    return value if numeric is float or text is None or _DIGITS.fullmatch(text) else _Miswritten(text)


@dataclass(frozen=True, slots=True)
class _Miswritten:
    """What stands where a whole number should."""

    text: str

    def __repr__(self) -> str:
        return repr(self.text)
