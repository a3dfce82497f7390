"""Reads the files of settings, through Dynaconf, as what they say: nothing in them is a directive to it."""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from app.kernel.config.settings import Misconfigured, Problem

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")
_DYNACONF = re.compile(r"dynaconf", re.IGNORECASE)  # dynaconf_merge, LOADERS_FOR_DYNACONF
_VARIABLES = re.compile(r".*_FOR_DYNACONF|DYNACONF_.*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class File:
    """What a file holds: sections, and the text of what stands under each `section.key`."""

    label: str
    content: dict[str, object]
    texts: dict[str, str]


def read(files: list[Path]) -> list[File]:
    """Return what each file holds. Raises Misconfigured with everything that keeps them from being read."""
    problems: list[Problem] = []
    written: dict[str, dict[str, object]] = {}
    history: list[dict[str, Any]] = []
    try:
        written = {file.name: _written(file) for file in files}
        problems = [
            Problem(key, _label(file), "unknown key") for file in files for key in _directives(written[file.name])
        ]
        history = [] if problems else _history(files)
    except Exception:  # noqa: BLE001 - which file, and why, is found out below
        problems = [problem for file in files for problem in _why_unreadable(file)]
    if problems:
        raise Misconfigured(f"the settings in {files[0].parent} cannot be read", problems) from None
    labels = {file.name: _label(file) for file in files}
    return [
        File(labels[name], {str(key).lower(): value for key, value in entry["value"].items()}, _scalars(written[name]))
        for entry in history
        # Dynaconf takes a default.local.yaml along, which is none of our layers
        if entry["loader"] == "yaml" and (name := Path(entry["identifier"]).name) in labels
    ]


def read_value(path: str) -> str:
    """Return a value that stands alone in a file, without a byte order mark and the ends of its last line.

    Raises OSError, UnicodeDecodeError.
    """
    return Path(path).read_text(encoding="utf-8-sig").rstrip("\r\n")


def _written(file: Path) -> dict[str, object]:
    """Return what a file holds, every scalar as its text."""
    from dynaconf.vendor.ruamel import yaml  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    text = file.read_text(encoding="utf-8-sig")  # Dynaconf only warns of what it may not read
    content: object = cast("Any", yaml).load(text, Loader=cast("Any", yaml).BaseLoader)
    if not content:
        return {}
    if not isinstance(content, dict):
        raise TypeError
    return {str(key): value for key, value in cast("dict[object, object]", content).items()}


def _directives(content: dict[str, object]) -> list[str]:
    """Return the keys that are no names but tell Dynaconf what to do, which it would."""
    keys = [(name, name) for name in content]
    keys += [(f"{name}.{key}", key) for name in content for key in _section(content, name)]
    return [full for full, key in keys if not _NAME.fullmatch(key) or _DYNACONF.search(key)]


def _scalars(content: dict[str, object]) -> dict[str, str]:
    """Return what stands where, as it is written."""
    sections = {name: _section(content, name) for name in content}
    return {
        f"{name.lower()}.{key}": value
        for name, section in sections.items()
        for key, value in section.items()
        if isinstance(value, str)
    }


def _section(content: dict[str, object], name: str) -> dict[str, object]:
    section = content[name]
    if not isinstance(section, dict):
        return {}
    return {str(key): value for key, value in cast("dict[object, object]", section).items()}


def _history(files: list[Path]) -> list[dict[str, Any]]:
    from dynaconf import Dynaconf  # pyright: ignore[reportMissingTypeStubs]
    from dynaconf.utils.inspect import get_history  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    with _without_variables():
        loaded: Any = Dynaconf(
            settings_files=[str(file) for file in files],
            merge_enabled=False,  # it would join lists; layers are merged section by section
            load_dotenv=False,
            environments=False,
            envvar_prefix=False,
            loaders=[],
            core_loaders=["YAML"],
            auto_cast=False,
        )
        return cast("list[dict[str, Any]]", get_history(loaded))


@contextmanager
def _without_variables() -> Generator[None]:
    """Hide Dynaconf's own variables from it: they would name other files, loaders and casts."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if _VARIABLES.fullmatch(name)}
    try:
        yield
    finally:
        os.environ |= hidden


def _why_unreadable(file: Path) -> list[Problem]:
    """Say where a file is broken. The parser's own words would show what stands there, and that may be a secret."""
    try:
        if not _directives(_written(file)):
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
