"""Redaction: no secret reaches a log, a trace, a captured error or a notification, by its name or by its look."""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast
from uuid import UUID

from app.kernel.product import NAME

HIDDEN = "***"
_NAMES = (
    "password",
    "passwd",
    "secret",
    "token",
    "authorization",
    "cookie",
    "api_key",
    "apikey",
    "credential",
    "private_key",
    "otp",
    "dsn",
)
# a look that only secrets have: JWT (RFC 7519), our own tokens and keys, passwords in URLs, Authorization values
_LOOKS = re.compile(
    r"eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.?[A-Za-z0-9_-]*"
    r"|\brt_[A-Za-z0-9_-]{20,}"
    rf"|\b{NAME}_[A-Za-z0-9_-]{{20,}}"
    r"|(?<=://)[^\s/@\"']*:[^\s/@\"']+(?=@)"
    r"|(?i:(?<=bearer )|(?<=basic ))[A-Za-z0-9._~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)
_MARKS = ("eyJ", "rt_", f"{NAME}_", "://", "earer ", "asic ", "EARER ", "ASIC ", "PRIVATE KEY")
# name=value and "name": "value" inside of text
_PAIRS = re.compile(
    "(?i)((?:" + "|".join(_NAMES) + r")[a-z_]*\\*[\"']?\s*[=:]\s*)"
    r"""(\\+"[^"\\]*\\+"|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&"'})\]\\]+)"""
)
_SHORT = 64
_PLAIN = frozenset({int, float, bool, UUID, type(None)})
_known: set[str] = set()


def remember(secrets: Iterable[str]) -> None:
    """Hide these values wherever they appear: the secrets of the settings. Short ones would hide too much."""
    _known.update(secret for secret in secrets if len(secret) >= 6)
    _short.cache_clear()


@functools.cache
def is_secret_name(name: str) -> bool:
    """Return whether a field of this name holds a secret."""
    lower = name.lower()
    return any(part in lower for part in _NAMES)


def redacted(text: str) -> str:
    """Return the text without what is a secret. Safe to repeat."""
    for secret in _known:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    for mark in _MARKS:  # a loop, not any(): this is for every line of the log
        if mark in text:
            text = _LOOKS.sub(HIDDEN, text)
            break
    lower = text.lower()
    for name in _NAMES:
        if name in lower:
            return _PAIRS.sub(rf"\1{HIDDEN}", text)
    return text


def redacted_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields, those with a secret name hidden, and texts without secrets, at every depth."""
    return {
        name: HIDDEN if is_secret_name(name) else value if type(value) in _PLAIN else _value(value)
        for name, value in fields.items()
    }


@functools.lru_cache(1024)
def _short(text: str) -> str:
    return redacted(text)  # names of operations and tasks, again and again


def _value(value: object) -> object:
    if isinstance(value, str):
        return _short(value) if len(value) <= _SHORT else redacted(value)
    if isinstance(value, Mapping):
        return redacted_fields(cast("Mapping[str, Any]", value))
    if isinstance(value, list | tuple):
        return [_value(item) for item in cast("list[object]", value)]
    return value
