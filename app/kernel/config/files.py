"""Reads settings files through Dynaconf, without its directives (ADR 25)."""

import os
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from app.kernel.config.settings import Misconfigured, Problem

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")
_DYNACONF = re.compile(r"dynaconf", re.IGNORECASE)  # dynaconf_merge, LOADERS_FOR_DYNACONF
_VARIABLES = re.compile(r".*_FOR_DYNACONF|DYNACONF_.*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class File:
    """Content of a file: sections, and the text of each `section.key`."""

    label: str
    content: dict[str, object]
    texts: dict[str, str]


def read(files: list[Path]) -> dict[Path, File]:
    """Return the content of each file. Raises Misconfigured with all problems."""
    problems: list[Problem] = []
    found: dict[Path, File] = {}
    for file in files:
        label = f"{file.parent.name}/{file.name}"
        try:
            text = file.read_text(encoding="utf-8-sig")  # Dynaconf only warns of an unreadable file
            parsed = _parsed(file, label, text)
        except Exception as error:  # noqa: BLE001 - the vendored parser's errors share no base class that can be imported
            problems.append(Problem("-", label, _reason(error)))
            continue
        if isinstance(parsed, File):
            found[file] = parsed
        else:
            problems += parsed
    if problems:
        raise Misconfigured(f"the settings in {files[0].parent} cannot be read", problems) from None
    return found


class CannotRead(Exception):
    """A file cannot be read as text; the message says why."""


def read_value(path: str) -> str:
    """Return a file's content without byte order mark and trailing newlines. Raises CannotRead."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise CannotRead(error.strerror if isinstance(error, OSError) else "it is not UTF-8 text") from None


@lru_cache(maxsize=8)
def _parsed(file: Path, label: str, text: str) -> File | list[Problem]:
    """Return the content of a file, or its directives. Parsing takes most of the time of reading the settings."""
    keys = list(_keys(_yaml(text)))
    if directives := [Problem(full, label, "unknown key") for full, key, _ in keys if not _is_name(key)]:
        return directives
    return File(label, _content(file), {full: value for full, _, value in keys if isinstance(value, str)})


def _yaml(text: str) -> dict[str, object]:
    """Return the content of a file, with scalars as text."""
    with _without_jinja():
        from dynaconf.vendor.ruamel import yaml  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    content: object = cast("Any", yaml).load(text, Loader=cast("Any", yaml).BaseLoader)
    if content and not isinstance(content, dict):
        raise TypeError
    return {str(key): value for key, value in cast("dict[object, object]", content or {}).items()}


def _keys(content: dict[str, object]) -> Iterator[tuple[str, str, object]]:
    """Yield `section.key`, the key alone, and the value."""
    for name, section in content.items():
        yield name, name, section
        if isinstance(section, dict):
            for key, value in cast("dict[object, object]", section).items():
                yield f"{name}.{key}", str(key), value


def _is_name(key: str) -> bool:
    """Return whether a key is a name, not a directive of Dynaconf."""
    return _NAME.fullmatch(key) is not None and not _DYNACONF.search(key)


def _content(file: Path) -> dict[str, object]:
    from dynaconf import Dynaconf  # pyright: ignore[reportMissingTypeStubs]
    from dynaconf.utils.inspect import get_history  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    with _without_variables():
        loaded: Any = Dynaconf(
            settings_files=[str(file)],
            load_dotenv=False,
            environments=False,
            envvar_prefix=False,
            loaders=[],
            core_loaders=["YAML"],
            auto_cast=False,
        )
        history = cast("list[dict[str, Any]]", get_history(loaded))
    # Dynaconf also loads default.local.yaml, which is not one of our layers
    found = [entry["value"] for entry in history if Path(entry["identifier"]).name == file.name]
    return {str(key).lower(): value for content in found for key, value in content.items()}


@contextmanager
def _without_jinja() -> Generator[None]:
    """Import Dynaconf without Jinja2, which it loads where it is installed: 70 ms for a directive that is refused."""
    if "dynaconf" in sys.modules or "jinja2" in sys.modules:
        yield
        return
    sys.modules["jinja2"] = cast("Any", None)
    try:
        yield
    finally:
        del sys.modules["jinja2"]


@contextmanager
def _without_variables() -> Generator[None]:
    """Hide Dynaconf's variables: they could add files, loaders and casts."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if _VARIABLES.fullmatch(name)}
    try:
        yield
    finally:
        os.environ |= hidden


def _reason(error: Exception) -> str:
    """Return why and where a file is malformed, without the parser's message: it could show a secret."""
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text"
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return "expected sections with keys below them"
    if type(error).__name__ == "DuplicateKeyError":
        return f"duplicate key at line {mark.line + 1}"
    return f"not YAML at line {mark.line + 1}, column {mark.column + 1}; quote values with special characters"
