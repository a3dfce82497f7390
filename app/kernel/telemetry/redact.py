"""Redaction of secrets, by name and by form, in logs, traces, captured errors and notifications."""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast
from urllib.parse import unquote
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
# forms of secrets: JWT (RFC 7519), our tokens and keys, passwords in URLs, Authorization values
_LOOKS = re.compile(
    r"eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.?[A-Za-z0-9_-]*"
    # after the letter of an escaped line end, too; `backup_` begins the name of a replication slot
    rf"|(?:\b|(?<=\\[nrt]))(?:rt|{NAME})_(?!backup_)[A-Za-z0-9_-]{{20,}}"
    r"|(?<=://)[^\s/@\"']*:[^\s/@\"']+(?=@)"
    r"|(?i:(?<=bearer )|(?<=basic ))[A-Za-z0-9._~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)
_MARKS = ("eyJ", "rt_", f"{NAME}_", "://", "earer ", "asic ", "EARER ", "ASIC ", "PRIVATE KEY")
# name=value and "name": "value" in text
_PAIRS = re.compile(
    "(?i)((?:" + "|".join(_NAMES) + r")[a-z_]*\\*[\"']?\s*[=:]\s*)"
    r"""(\\+"[^"\\]*\\+"|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&"'})\]\\]+)"""
)
_PART = re.compile(r"[^\s,;/:@?&=.]{16,}(?![^\s,;/:@?&=])")  # the token in a webhook or a header; host names have dots
_SHORT = 64
_PLAIN = frozenset({int, float, bool, UUID, type(None)})
_known: list[str] = []


def remember(secrets: Iterable[str]) -> None:
    """Redact these secrets of the settings, and long parts of them, everywhere.

    Not short ones, which would match too much.
    """
    parts = {part for secret in secrets for part in (secret, *_PART.findall(secret))}
    found = {part for part in {*parts, *map(unquote, parts)} if len(part) >= 6}
    _known[:] = sorted(found.union(_known), key=len, reverse=True)  # a part would leave the rest
    _short.cache_clear()


@functools.cache
def is_secret_name(name: str) -> bool:
    """Return whether a field with this name is a secret."""
    lower = name.lower()
    return any(part in lower for part in _NAMES)


def redacted(text: str) -> str:
    """Return the text with secrets redacted. Safe to repeat."""
    for secret in _known:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    for mark in _MARKS:  # faster than any(), for every log line
        if mark in text:
            text = _LOOKS.sub(HIDDEN, text)
            break
    lower = text.lower()
    for name in _NAMES:
        if name in lower:
            return _PAIRS.sub(rf"\1{HIDDEN}", text)
    return text


def redacted_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with secrets redacted, at every depth."""
    return {
        name: HIDDEN if is_secret_name(name) else value if type(value) in _PLAIN else _value(value)
        for name, value in fields.items()
    }


@functools.lru_cache(1024)
def _short(text: str) -> str:
    return redacted(text)  # cached: names of operations and tasks repeat


def _value(value: object) -> object:
    if isinstance(value, str):
        return _short(value) if len(value) <= _SHORT else redacted(value)
    if isinstance(value, Mapping):
        return redacted_fields(cast("Mapping[str, Any]", value))
    if isinstance(value, list | tuple):
        return [_value(item) for item in cast("list[object]", value)]
    return value
