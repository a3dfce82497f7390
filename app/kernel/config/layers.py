"""Reads the layers of settings and validates them as a whole."""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, replace
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from app.kernel.config.files import read
from app.kernel.config.misspelt import misspelt
from app.kernel.config.safety import exposure, is_here, why_guessable
from app.kernel.config.sections import LATER, Section
from app.kernel.config.settings import (
    BUILT_IN,
    COMMAND_LINE,
    NOWHERE,
    UNSAFE,
    Environment,
    Misconfigured,
    PendingSecret,
    Problem,
    Setting,
    Settings,
    current_environment,
    misconfigured,
    schema,
)
from app.kernel.config.stores import CannotFetch, Stores, is_reference
from app.kernel.config.variables import Lookup, NotReadable, from_credentials, from_environment
from app.kernel.telemetry.redact import is_secret_name, remember

_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
_SHOWN = 80
_DIGITS = re.compile(r"-?(0|[1-9][0-9]*)", re.ASCII)
_USER = re.compile(r"[^\s/'\"]+@")  # of a URL in place of a host, often with a password
_FALSE = ("false", "0", "off", "no", "n", "f")  # as pydantic reads them
_RANDOM = ", such as the output of `openssl rand -base64 32`"
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
_adapter = cache(TypeAdapter)


def load(
    root: Path,
    sections: Iterable[type[Section]],
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, object] | None = None,
    *,
    only: Collection[type[Section]] = (),
    secrets: Lookup | None = None,
) -> Settings:
    """Read and validate all layers, of all sections or `only` some.

    `root` has the folder `settings`; `overrides` maps `section.key` to the value of a command option; `secrets` looks
    secrets up outside the environment. Missing secrets are refused when they are used, and those in a store of secrets
    are fetched then; see `Settings.demand`.
    Raises Misconfigured with all problems, StoresUnavailable. Safe to repeat.
    """
    layers, settings = _loaded(root, sections, environ, overrides, only=only, secrets=secrets)
    if layers.problems:
        raise layers.error()
    return settings


def load_valid(
    root: Path,
    sections: Iterable[type[Section]],
    environ: Mapping[str, str] = os.environ,
) -> tuple[Settings, Misconfigured | None]:
    """Read and validate all layers; return the valid sections, and the error of a process that uses all of them.

    Raises Misconfigured when APP_ENV or a file cannot be read at all.
    """
    layers, settings = _loaded(root, sections, environ, None)
    return settings, layers.error() if layers.problems or layers.withheld else None


def _loaded(
    root: Path,
    sections: Iterable[type[Section]],
    environ: Mapping[str, str],
    overrides: Mapping[str, object] | None,
    *,
    only: Collection[type[Section]] = (),
    secrets: Lookup | None = None,
) -> tuple["_Layers", Settings]:
    layers = _Layers(root, sections, environ)
    layers.add_files()
    layers.find_unknown()
    layers.add_variables(from_environment(environ), secrets)
    for key, value in (overrides or {}).items():
        layers.set(layers.schema[key], value, COMMAND_LINE)
    layers.remember_secrets()
    kinds = [kind for kind in layers.kinds if not only or kind in only]
    layers.fetch_plain(kinds)
    built = {kind: layers.build(kind) for kind in kinds}
    layers.check()
    valid = Settings(
        layers.environment,
        {kind: layers.pending(kind, section) for kind, section in built.items() if section is not None},
        {key: layers.whence(key, source) for key, source in layers.sources.items()},
        layers.withheld,
        tuple(layers.warnings),
        tuple(misspelt(environ, [setting.variable for setting in layers.schema.values()])),
        frozenset(layers.hidden),
    )
    return layers, valid


class _Layers:
    """Values with their sources, and the problems found."""

    def __init__(self, root: Path, sections: Iterable[type[Section]], environ: Mapping[str, str]) -> None:
        self.folder = root / "settings"
        self.environment: Environment = current_environment(environ)
        self.environ = environ
        self.stores = Stores(environ)
        self.kinds = list(sections)
        self.schema = {setting.key: setting for kind in self.kinds for setting in schema(kind)}
        self.tree: defaultdict[str, dict[str, object]] = defaultdict(dict)
        self.sources: dict[str, str] = {}
        self.numbers: dict[str, str] = {}
        self.published: defaultdict[str, list[str]] = defaultdict(list)
        self.problems: list[Problem] = []
        self.withheld: dict[str, Problem] = {}
        self.warnings: list[Problem] = []
        self.hidden: set[str] = set()
        self.unfetched: set[str] = set()
        for setting in self.schema.values():
            if setting.default is not MISSING:
                self.set(setting, setting.default, BUILT_IN)

    def set(self, setting: Setting, value: object, source: str) -> None:
        self.tree[setting.kind.section][setting.name] = value
        self.sources[setting.key] = source
        self.numbers.pop(setting.key, None)

    def value(self, setting: Setting) -> object:
        return self.tree[setting.kind.section].get(setting.name)

    def whence(self, key: str, source: str) -> str:
        """Return the source of a setting, with the reference to a store."""
        value = self.value(self.schema[key]) if key in self.schema else None
        return f"{source} ({value.strip()})" if is_reference(value) else source

    def problem(self, key: str, message: str, source: str = "", hint: str = "") -> Problem:
        return Problem(key, source or self.sources.get(key, NOWHERE), _USER.sub("***@", message), hint)

    def error(self) -> Misconfigured:
        """Return the error that reports all problems, also those that concern some processes only."""
        is_final = {problem.key for problem in self.problems} != self.unfetched
        return misconfigured(self.environment, [*self.problems, *self.withheld.values()], is_final=is_final)

    def refuse(self, key: str, message: str, source: str = "", hint: str = "") -> None:
        self.problems.append(self.problem(key, message, source, hint))

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
        credentials = from_credentials(self.environ)
        for setting in self.schema.values():
            lookup = secrets if secrets and setting.is_secret else environment
            try:
                found = lookup(setting.variable)
                if found is None and setting.is_secret:
                    found = credentials(setting.key)
                if found:
                    self.set(setting, *found)
            except NotReadable as error:
                self.refuse(setting.key, str(error), error.source)

    def remember_secrets(self) -> None:
        """Redact secrets also when they are invalid, or have an unknown key."""
        for name, section in self.tree.items():
            for key, value in section.items():
                known = self.schema.get(f"{name}.{key}")
                if isinstance(value, str) and (known.is_secret if known else is_secret_name(key)):
                    remember([value, *value.split()])

    def fetch_plain(self, kinds: Iterable[type[Section]]) -> None:
        """Fetch the values of settings that are not of a secret type from the stores that have them."""
        for setting in (setting for kind in kinds for setting in schema(kind) if not setting.is_secret):
            if is_reference(reference := self.value(setting)):
                self.hidden.add(setting.key)
                try:
                    self._take(setting, reference)
                except CannotFetch as error:
                    self.tree[setting.kind.section].pop(setting.name, None)
                    self.refuse(setting.key, str(error), hint=error.hint)
                    if not error.is_final:
                        self.unfetched.add(setting.key)

    def pending(self, kind: type[Section], section: object) -> object:
        """Return the section; secrets that are missing or in a store raise or are fetched when they are used."""
        made: dict[str, object] = {}
        for setting in schema(kind):
            if setting.is_secret and (setting.key in self.withheld or is_reference(self.value(setting))):
                made[setting.name] = PendingSecret(partial(self._fetch, setting))
            elif setting.is_renewable:
                known = getattr(section, setting.name).get_secret_value()
                made[setting.name] = PendingSecret(partial(str, known), known)
        return replace(cast("Any", section), **made) if made else section

    def _fetch(self, setting: Setting) -> str:
        """Return a secret from its store. Raises Misconfigured, StoresUnavailable."""
        if setting.key in self.withheld:
            raise misconfigured(self.environment, [self.withheld[setting.key]])
        reference, source = str(self.value(setting)), self.sources[setting.key]
        self.problems.clear()
        try:
            self._take(setting, reference)
            self.build(setting.kind)
            self._check(setting, exposure(self.tree))
            if found := [*self.problems, *filter(None, [self.withheld.pop(setting.key, None)])]:
                raise misconfigured(self.environment, found)
            return str(self.value(setting))
        except CannotFetch as error:
            problem = self.problem(setting.key, str(error), source, error.hint)
            raise misconfigured(self.environment, [problem], is_final=error.is_final) from None
        finally:
            self.tree[setting.kind.section][setting.name], self.sources[setting.key] = reference, source

    def _take(self, setting: Setting, reference: str) -> None:
        text = self.stores.fetch(reference)
        remember([text, *text.split()])
        source = self.sources[setting.key]
        self.set(setting, text, source if reference in source else f"{source} ({reference})")

    def build(self, kind: type[Section]) -> object:
        """Return the section, or None when it is invalid."""
        known = {s.name: self._as_written(s) for s in schema(kind) if s.name in self.tree[kind.section]}
        known |= {s.name: LATER for s in schema(kind) if self._comes_later(s)}
        try:
            return _adapter(kind).validate_python(known)
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                setting = self.schema[f"{kind.section}.{problem['loc'][0]}"]
                self._explain(setting, dict(problem))
        return None

    def _comes_later(self, setting: Setting) -> bool:
        """Return whether a secret is refused or fetched when it is used."""
        value = self.value(setting)
        is_missing = self.environment not in UNSAFE and not setting.may_be_empty and not value
        return setting.is_secret and (is_missing or is_reference(value))

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
        if error["type"] == "missing" and setting.key in self.hidden:
            return  # it could not be fetched
        if error["type"] == "missing":
            self.refuse(setting.key, f"missing; set {setting.variable}", "nowhere")
            return
        hint = ""
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
        if isinstance(value, str) and setting.type is int and _SERVICE_LINK.match(value):
            expected += "; this variable is a service link of Kubernetes"
            hint = f"set enableServiceLinks: false in the pod, or set {setting.variable} there"
        shown = f"a {type(value).__name__}"  # a mapping may contain a misplaced secret
        if isinstance(value, str | int | float | None):
            shown = _USER.sub("***@", repr(value))[:_SHOWN]
        is_shown = not setting.is_secret and setting.key not in self.hidden
        self.refuse(setting.key, expected + (f", got {shown}" if is_shown else ""), hint=hint)

    def check(self) -> None:
        """Refuse settings that are safe only on an unreachable laptop: no server, debugging, published secrets.

        Withholds those that matter only to the processes that use them.
        """
        exposed = exposure(self.tree)
        for setting in self.schema.values():
            self._check(setting, exposed)

    def _check(self, setting: Setting, exposed: str) -> None:
        key, value, text = setting.key, self.value(setting), str(self.value(setting) or "")
        change = f"set {setting.variable}{_RANDOM if setting.is_key else ''}"
        if is_reference(value):
            return
        if key == "queue.events_transport" and text == "nats" and not self.tree["nats"].get("url"):
            self.refuse(key, "nats needs the address of a server; set NATS_URL")
        if self.environment in UNSAFE:
            is_used_key = setting.is_key and bool(text or not setting.may_be_empty)
            if exposed and is_used_key and (why := why_guessable(text, self.published[key], key=True)):
                self._withhold(key, f"{why}, but {exposed}; {change}")
        elif setting.is_secret:
            self._check_secret(setting, text, change)
        elif key == "http_server.debug" and str(value).lower() not in _FALSE:
            self.refuse(key, "must be false outside local and test")
        elif key == "postgres.host" and not value:
            self._withhold(key, f"the embedded server is for local and test only; {change}")
        elif setting.is_public and is_here(text):
            self._withhold(key, f"a loopback address outside local and test; {change} to the public address")

    def _check_secret(self, setting: Setting, text: str, change: str) -> None:
        key = setting.key
        if not text.strip() and setting.may_be_empty:
            if key == "sentinel.notify_urls":
                self.warnings.append(self.problem(key, f"nobody is notified of errors and outages; {change}"))
        elif any(problem.key == key for problem in self.problems):
            return
        elif not text:
            random = _RANDOM if setting.is_key else ""
            self._withhold(key, f"missing secret; set {setting.variable} or {setting.variable}_FILE{random}")
        elif why := why_guessable(text, self.published[key], key=setting.is_key):
            self.refuse(key, f"{why}; {change}")

    def _withhold(self, key: str, message: str) -> None:
        self.withheld[key] = self.problem(key, message)


@dataclass(frozen=True, slots=True)
class _Miswritten:
    """A value that is not a valid integer."""

    text: str
