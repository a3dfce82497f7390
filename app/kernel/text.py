"""Text: what comes from outside is made safe to log, encode and store; times and states as people read them."""

import math
import os
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, cast

_LONGEST = 8000
_DEEPEST = 20
_LONGEST_NAME = 128
_FEW = 8
_FAR = timedelta(days=100)
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_SIZES = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_COLOURS = {
    "green": ("done", "resolved", "applied", "accepted", "succeeded", "ok"),
    "yellow": ("leased", "waiting", "pending", "paused", "muted"),
    "red": ("dead", "failed", "open", "regressed", "edited", "damaged"),
    "cyan": ("ready", "running"),
    "bright_black": ("cancelled", "unknown", "skipped"),
}
COLOUR_OF = {state: colour for colour, states in _COLOURS.items() for state in states}
"""The colours of states."""


def allows_colour(is_terminal: bool) -> bool:
    """Return whether an output may have colours (no-color.org)."""
    return is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def storable(text: str) -> str:
    """Return text that UTF-8 and PostgreSQL accept: lone surrogates become `?`, NUL is removed. Safe to repeat."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "").encode(errors="replace").decode()


def storable_tree(value: object, depth: int = _DEEPEST) -> Any:
    """Apply `storable` to mappings and lists, down to a depth; values that JSON does not have become text."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if depth and isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        return {storable(shown(key)): storable_tree(item, depth - 1) for key, item in pairs}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [storable_tree(item, depth - 1) for item in cast("list[object]", value)]
    return storable(shown(value)[:_LONGEST])


def shown(value: object, how: Callable[[object], str] = str) -> str:
    """Return `str(value)` or `repr(value)`, or its type when that raises. Never raises."""
    try:
        return how(value)
    except BaseException:  # noqa: BLE001 - the method is not ours
        return f"<{_kind(value)} that cannot be shown>"


def error_text(error: BaseException) -> str:
    """Return type and text of an exception, storable, of limited length. Never raises."""
    text = storable(shown(error)[:_LONGEST])
    return f"{_kind(error)}: {text}" if text else _kind(error)


def _kind(value: object) -> str:
    """Return the name of a value's type, whatever its metaclass returns."""
    return storable(type.__dict__["__name__"].__get__(type(value)))


def misnamed(option: str, value: object) -> str:
    """Return the error message for an invalid name, empty for a valid one."""
    if isinstance(value, str) and value.strip() == value and 0 < len(value) <= _LONGEST_NAME and value.isprintable():
        return ""
    return f"{option} must have 1 to {_LONGEST_NAME} printable characters, without spaces around them"


def suggestion(name: str, known: Collection[str]) -> str:
    """Return the end of a message about an unknown name: the closest name, or all names when they are few."""
    if near := get_close_matches(name, known, 1):
        return f"; did you mean {near[0]}?"
    return f", but {', '.join(sorted(known))}" if 0 < len(known) <= _FEW else ""


def relative(moment: datetime, now: datetime) -> str:
    """Return a relative time: `3 min ago`, `in 2 h`; the date if it is far away."""
    distance = abs(moment - now)
    if distance > _FAR:
        return f"{moment:%Y-%m-%d}"
    seconds = distance.total_seconds()
    if seconds < 1:
        return "now"
    return f"in {lasting(seconds)}" if moment > now else f"{lasting(seconds)} ago"


def lasting(seconds: float | None) -> str:
    """Return a duration in its largest unit: `3 min`; an empty text for None."""
    if seconds is None:
        return ""
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds >= size), _UNITS[-1])
    return f"{round(seconds) if size == 1 else int(seconds) // size} {unit}"


def plural(count: int, noun: str) -> str:
    """Return a number with its noun: `1 backup`, `2,000 backups`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size_text(size_bytes: int | None) -> str:
    """Return a size in its largest decimal unit: `1.4 GB`; an empty text for None."""
    if size_bytes is None:
        return ""
    for unit, factor in _SIZES:
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def exact(moment: datetime | None) -> str:
    """Return a time in UTC; an empty text for None."""
    return f"{moment:%Y-%m-%d %H:%M:%S}Z" if moment else ""


def printable(text: str) -> str:
    """Escape control characters other than line ends: they may come from other people, as the name of a file."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
