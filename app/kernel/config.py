"""Settings: Dynaconf layers, validated into frozen dataclasses. Every problem at once; secrets never shown.

Layers, later ones win: `settings/default.yaml`, `settings/{APP_ENV}.yaml`, `settings/.secrets.yaml`, the environment
(`SECTION_KEY`, or `SECTION_KEY_FILE` for the name of a file that holds the value), options of the command.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, cast, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, TypeAdapter, ValidationError

Environment = Literal["local", "test", "staging", "production"]
ENVIRONMENTS: tuple[Environment, ...] = ("local", "test", "staging", "production")
DEFAULT_ENVIRONMENT: Environment = "local"
_UNSAFE: tuple[Environment, ...] = ("local", "test")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", re.ASCII)
_FALSE = ("false", "0", "off", "no", "n", "f")  # as pydantic reads them
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: object) -> object:
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _SECONDS[match[2] or "s"]
    if isinstance(value, str | bool):
        raise ValueError("expected a duration such as 500ms, 30s, 5m, 12h or 7d")
    return value


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for network in value:
        try:
            ip_network(network)
        except ValueError:
            raise ValueError("expected addresses or CIDR such as 10.0.0.0/8, separated by commas") from None
    return value


Duration = Annotated[float, BeforeValidator(_seconds), Field(ge=0, allow_inf_nan=False)]
"""Seconds; written as `500ms`, `30s`, `5m`, `12h`, `7d` or a number of seconds."""
Port = Annotated[int, Field(ge=0, le=65535)]
Secret = SecretStr


class Section(Protocol):
    """A frozen dataclass of settings under one name."""

    section: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


S = TypeVar("S", bound=Section)


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """How a process stops."""

    section: ClassVar[str] = "process"
    drain_delay: Annotated[Duration, Field(description="between /ready turning 503 and the listener closing")]
    grace: Annotated[Duration, Field(description="for what is in flight, after the drain delay")]


@dataclass(frozen=True, slots=True)
class HttpServerSettings:
    """The HTTP server of the API processes."""

    section: ClassVar[str] = "http_server"
    host: Annotated[str, Field(min_length=1, description="address to listen on")]
    port: Annotated[Port, Field(description="port to listen on; 0 takes a free one")]
    debug: Annotated[bool, Field(description="put the exception into 500 answers; local and test only")]
    handle_timeout: Annotated[Duration, Field(gt=0, description="a request that takes longer is answered 504")]
    max_body_bytes: Annotated[int, Field(ge=1024, description="a larger request body is answered 413")]
    trusted_proxies: Annotated[
        tuple[str, ...],
        BeforeValidator(_names),
        AfterValidator(_networks),
        Field(description="whose X-Forwarded-For is believed: addresses or CIDR"),
    ]
    body_timeout: Annotated[Duration, Field(gt=0, description="a request body that takes longer is answered 408")]


@dataclass(frozen=True, slots=True)
class OperationsSettings:
    """Where worker processes answer /health, /ready and /metrics."""

    section: ClassVar[str] = "operations"
    host: Annotated[str, Field(min_length=1, description="address to listen on")]
    port: Annotated[Port, Field(description="port to listen on; 0 takes a free one")]


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """The database. Without a host, the embedded server is used (local and test only)."""

    section: ClassVar[str] = "postgres"
    host: Annotated[str, Field(description="host name, address or socket folder; empty: the embedded server")]
    port: Annotated[Port, Field(ge=1, description="port of the server")]
    user: Annotated[str, Field(min_length=1, description="role to connect as")]
    password: Annotated[Secret, Field(description="password of the role")]
    db: Annotated[str, Field(min_length=1, description="name of the database")]
    ssl: Annotated[Literal["disable", "require", "verify-full"], Field(description="transport security")]
    ssl_root_cert: Annotated[
        str, Field(description="file of trusted certificates for verify-full; system: the system's")
    ]
    pool_size: Annotated[int, Field(ge=1, le=1000, description="most connections of one process")]
    pool_timeout: Annotated[Duration, Field(gt=0, description="longest wait for a connection")]
    pool_queue: Annotated[int, Field(ge=1, description="most requests that wait for a connection at once")]
    statement_timeout: Annotated[Duration, Field(gt=0, description="longest statement")]
    lock_timeout: Annotated[Duration, Field(gt=0, description="longest wait for a lock")]
    startup_timeout: Annotated[Duration, Field(description="how long a starting process waits for the server")]
    migrate: Annotated[bool, Field(description="apply pending migrations when starting; otherwise refuse to start")]


@dataclass(frozen=True, slots=True)
class LoggerSettings:
    """Logs of the long-running processes."""

    section: ClassVar[str] = "logger"
    level: Annotated[Literal["debug", "info", "warn", "error"], Field(description="least severe level written")]
    format: Annotated[Literal["json", "console"], Field(description="one JSON object a line, or text for people")]
    output: Annotated[str, Field(min_length=1, description="stdout, or the path of a file")]


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Jobs and schedules."""

    section: ClassVar[str] = "queue"
    names: Annotated[
        tuple[str, ...], BeforeValidator(_names), Field(min_length=1, description="queues that a consumer works on")
    ]
    concurrency: Annotated[int, Field(ge=1, le=10_000, description="most jobs that one consumer runs at once")]
    poll_interval: Annotated[Duration, Field(gt=0, description="longest time that a due job or tick goes unnoticed")]
    lease: Annotated[Duration, Field(gt=0, description="after this without a sign of life a job is given to another")]


KERNEL_SECTIONS: tuple[type[Section], ...] = (
    ProcessSettings,
    HttpServerSettings,
    OperationsSettings,
    PostgresSettings,
    LoggerSettings,
    QueueSettings,
)


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


@dataclass(frozen=True, slots=True)
class Settings:
    """Validated settings; `settings[PostgresSettings]` is the section of that type."""

    environment: Environment
    sections: Mapping[type[Any], Any] = field(default_factory=dict[type[Any], Any])
    sources: Mapping[str, str] = field(default_factory=dict[str, str])

    def __getitem__(self, section: type[S]) -> S:
        return cast("S", self.sections[section])

    @property
    def is_production_like(self) -> bool:
        """Whether secrets must be real and nothing may be embedded."""
        return self.environment not in _UNSAFE

    def values(self) -> list[Value]:
        """Every effective setting, in the order of the schema, secrets redacted."""
        return [
            Value(
                key := f"{kind.section}.{name}",
                _shown(getattr(section, name)),
                self.sources.get(key, "settings/default.yaml"),
                description,
                isinstance(getattr(section, name), SecretStr),
            )
            for kind, section in self.sections.items()
            for name, description in describe(kind).items()
        ]


def _shown(value: object) -> object:
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    return value


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def describe(kind: type[Section]) -> dict[str, str]:
    """Return the keys of a section with what each means."""
    found: dict[str, str] = {}
    for item in fields(cast("Any", kind)):
        metadata = getattr(_hints(kind)[item.name], "__metadata__", ())
        found[item.name] = next((m.description for m in metadata if getattr(m, "description", None)), "")
    return found


def _is_secret(kind: type[Section], name: str) -> bool:
    hint = _hints(kind)[name]
    return hint is SecretStr or getattr(hint, "__origin__", None) is SecretStr


def _is_missing_secret(kind: type[Section], section: Mapping[str, object], name: str) -> bool:
    return _is_secret(kind, name) and not section.get(name)


def _counted(kind: type[Section], name: str, value: object) -> object:
    """Return the value; true and false are no numbers, though Python and pydantic take them for 1 and 0."""
    hint = _hints(kind)[name]
    return str(value).lower() if isinstance(value, bool) and getattr(hint, "__origin__", hint) is int else value


def environment_name(key: str) -> str:
    """Return the environment variable that overrides `section.key`."""
    return key.replace(".", "_").upper()


def current_environment(environ: Mapping[str, str]) -> Environment:
    """Return the value of APP_ENV. Raises Misconfigured when it is none of ENVIRONMENTS."""
    name = environ.get("APP_ENV", "") or DEFAULT_ENVIRONMENT
    for known in ENVIRONMENTS:
        if name == known:
            return known
    near = get_close_matches(name.lower(), ENVIRONMENTS, 1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise Misconfigured(f"APP_ENV is {name!r}, expected one of {', '.join(ENVIRONMENTS)}{hint}")


def load(
    root: Path,
    sections: Iterable[type[Section]],
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Read and validate all layers.

    `root` holds the folder `settings`; `overrides` maps `section.key` to the value of a command's option.
    Raises Misconfigured with every problem found. Safe to repeat; reads only.
    """
    environment = current_environment(environ)
    kinds = {kind.section: kind for kind in sections}
    tree, sources, problems = _layers(root, environment)
    problems += _unknown(kinds, tree, sources)
    for name, kind in kinds.items():
        section = tree.setdefault(name, {})
        for key in describe(kind):
            problems += _overlay(f"{name}.{key}", section, sources, environ, overrides or {})
    built: dict[type[Any], Any] = {}
    for name, kind in kinds.items():
        known = {key: _counted(kind, key, value) for key, value in tree[name].items() if key in describe(kind)}
        try:
            built[kind] = TypeAdapter(kind).validate_python(known)
        except ValidationError as error:
            problems += [
                _explain(kind, dict(e), sources)
                for e in error.errors(include_url=False)
                if environment in _UNSAFE or not _is_missing_secret(kind, tree[name], str(e["loc"][0]))
            ]
    if environment not in _UNSAFE:
        problems += _required(root, kinds, tree, sources)
    if problems:
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        raise Misconfigured(f"settings for APP_ENV={environment}: {count}", problems)
    return Settings(environment, built, sources)


def _layers(root: Path, environment: Environment) -> tuple[dict[str, dict[str, object]], dict[str, str], list[Problem]]:
    folder = root / "settings"
    files = [folder / "default.yaml", folder / f"{environment}.yaml"]
    if os.path.lexists(secrets := folder / ".secrets.yaml"):  # a link that leads nowhere must not go unnoticed
        files.append(secrets)
    tree: dict[str, dict[str, object]] = {}
    sources: dict[str, str] = {}
    problems: list[Problem] = []
    for file, content in _read(files):
        for name, section in content.items():
            if not isinstance(section, dict):
                problems.append(Problem(name, file, "expected a section with keys below it"))
                continue
            layer = tree.setdefault(name, {})
            for key, value in cast("dict[str, object]", section).items():
                if key not in layer or layer[key] != value:  # Dynaconf merges `section.key: value` itself
                    layer[key], sources[f"{name}.{key}"] = value, file
    return tree, sources, problems


def _read(files: list[Path]) -> list[tuple[str, dict[str, object]]]:
    """Return what each file holds. Raises Misconfigured with every file that cannot be read."""
    names = {file.name: _label(file) for file in files}
    try:
        for file in files:  # Dynaconf only warns of what it may not read
            file.read_text(encoding="utf-8")
        history = _history(files)
    except Exception:  # noqa: BLE001 - which file, and why, is found out below
        problems = [problem for file in files for problem in _why_unreadable(file)]
        raise Misconfigured(f"the settings in {files[0].parent} cannot be read", problems) from None
    return [
        (names[name], {str(key).lower(): value for key, value in entry["value"].items()})
        for entry in history
        # Dynaconf takes a default.local.yaml along, which is none of our layers
        if entry["loader"] == "yaml" and (name := Path(entry["identifier"]).name) in names
    ]


def _history(files: list[Path]) -> list[dict[str, Any]]:
    from dynaconf import Dynaconf  # pyright: ignore[reportMissingTypeStubs]
    from dynaconf.utils.inspect import get_history  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    loaded: Any = Dynaconf(
        settings_files=[str(file) for file in files],
        merge_enabled=False,  # it would join lists; _layers merges section by section
        load_dotenv=False,
        environments=False,
        envvar_prefix=False,
        loaders=[],
        core_loaders=["YAML"],
        auto_cast=False,
    )
    return cast("list[dict[str, Any]]", get_history(loaded))


def _why_unreadable(file: Path) -> list[Problem]:
    """Say where a file is broken. The parser's own words would show what stands there, and that may be a secret."""
    try:
        file.read_text(encoding="utf-8")
        _history([file])
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        reason = "is not UTF-8 text"
    except Exception as error:  # noqa: BLE001 - the vendored parser's errors share no base class that can be imported
        mark = getattr(error, "problem_mark", None)
        if mark is None:
            reason = "expected sections with keys below them"
        elif type(error).__name__ == "DuplicateKeyError":
            reason = f"a key stands there twice, again at line {mark.line + 1}"
        else:
            reason = f"not YAML at line {mark.line + 1}, column {mark.column + 1}; quote values with special characters"
    else:
        return []
    return [Problem("-", _label(file), reason)]


def _label(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


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
            section[name] = Path(file).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            return [Problem(key, sources[key], f"cannot read {file}: {reason}")]
    return []


def _explain(kind: type[Section], error: dict[str, Any], sources: Mapping[str, str]) -> Problem:
    name = str(error["loc"][0])
    key = f"{kind.section}.{name}"
    if error["type"] == "missing":
        return Problem(key, "nowhere", f"missing; set {environment_name(key)}")
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] in ("too_short", "string_too_short"):
        least = error["ctx"]["min_length"]
        message = "something, not nothing" if least == 1 else f"at least {least} characters"
    expected = message if message.startswith("expected") else f"expected {message}"
    value = error["input"]
    # what stands below a misplaced key may be a secret
    shown = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    shown = "" if _is_secret(kind, name) else f", got {shown}"
    return Problem(key, sources.get(key, "nowhere"), expected + shown)


def _required(
    root: Path,
    kinds: Mapping[str, type[Section]],
    tree: Mapping[str, Mapping[str, object]],
    sources: Mapping[str, str],
) -> list[Problem]:
    """What is fine on a laptop and refused elsewhere: no server, debugging, secrets missing or known to everybody."""
    files = [root / "settings" / f"{name}.yaml" for name in ("default", *_UNSAFE)]
    known = [_sections(content) for _, content in _read([file for file in files if file.is_file()])]
    problems: list[Problem] = []
    for name, kind in kinds.items():
        for key in describe(kind):
            full = f"{name}.{key}"
            value, source, variable = tree[name].get(key), sources.get(full, "nowhere"), environment_name(full)
            if full == "http_server.debug" and str(value).lower() not in _FALSE:
                problems.append(Problem(full, source, "must be false outside local and test"))
            elif full == "postgres.host" and not value:
                problems.append(Problem(full, source, f"nothing is embedded outside local and test; set {variable}"))
            elif not _is_secret(kind, key):
                continue
            elif not value:
                problems.append(Problem(full, source, f"missing secret; set {variable} or {variable}_FILE"))
            elif value in [content[name][key] for content in known if key in content.get(name, {})]:
                problems.append(Problem(full, source, f"a default that everybody knows; set {variable}"))
    return problems


def _sections(content: Mapping[str, object]) -> dict[str, dict[str, object]]:
    return {name: cast("dict[str, object]", section) for name, section in content.items() if isinstance(section, dict)}
