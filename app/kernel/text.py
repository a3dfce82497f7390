"""Text from outside: what can be logged, encoded and stored. The one place that decides it."""

import math
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, cast

_LONGEST = 8000
_DEEPEST = 20
_LONGEST_NAME = 128
_FEW = 8


def storable(text: str) -> str:
    """Return the text as UTF-8 and PostgreSQL can hold it: lone surrogates become `?`, NUL goes. Safe to repeat."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "").encode(errors="replace").decode()


def storable_tree(value: object, depth: int = _DEEPEST) -> Any:
    """Return the same of mappings and lists, down to a depth: what JSON can hold stays, other things become texts."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if depth and isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        return {storable(shown(key)): storable_tree(item, depth - 1) for key, item in pairs}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [storable_tree(item, depth - 1) for item in cast("list[object]", value)]
    return storable(shown(value)[:_LONGEST])


def shown(value: object, how: Callable[[object], str] = str) -> str:
    """Return `str(value)` or `repr(value)`, or its type when that fails, whatever a stranger's method raises."""
    try:
        return how(value)
    except BaseException:  # noqa: BLE001 - it is not what was asked for
        return f"<{_kind(value)} that cannot be shown>"


def said(error: BaseException) -> str:
    """Return an exception's type and text, storable, of bounded length. Never raises."""
    text = storable(shown(error)[:_LONGEST])
    return f"{_kind(error)}: {text}" if text else _kind(error)


def _kind(value: object) -> str:
    """Return the name of a value's type, past what a metaclass says."""
    return storable(type.__dict__["__name__"].__get__(type(value)))


def misnamed(option: str, value: object) -> str:
    """Return what is wrong with a name; an empty text when an index can hold it and people can tell it from others."""
    if isinstance(value, str) and value.strip() == value and 0 < len(value) <= _LONGEST_NAME and value.isprintable():
        return ""
    return f"{option} must have 1 to {_LONGEST_NAME} printable characters, without spaces around them"


def suggestion(name: str, known: Collection[str]) -> str:
    """Return what to add to the message about a name that does not exist: the nearest one, or all when they are few."""
    if near := get_close_matches(name, known, 1):
        return f"; did you mean {near[0]}?"
    return f", but {', '.join(sorted(known))}" if 0 < len(known) <= _FEW else ""
