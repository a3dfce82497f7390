"""Encoding of payloads as JSON, validated in both directions."""

import functools
import json
import re
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from app.kernel.errors import Invalid
from app.kernel.queue import Event

_LARGEST_BYTES = 16 * 1024**2
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # after an even number of backslashes


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return the cached codec of a type."""
    return TypeAdapter(kind)


def encode(kind: type[Any], value: object) -> str:
    """Encode a payload as JSON. Raises Invalid for another type, and for values that cannot be stored."""
    if not isinstance(value, kind):
        raise Invalid(f"the payload is a {type(value).__name__}, not a {kind.__name__}")
    codec = adapter(kind)
    try:
        text = codec.dump_json(value, warnings=False)
        codec.validate_json(text)
    except ValidationError as error:
        raise Invalid(f"a {kind.__name__} with {problems(error)}") from None
    except (ValueError, TypeError, RecursionError):  # a lone surrogate, a value without a JSON form, a cycle
        raise Invalid(f"a {kind.__name__} holds what cannot be written as JSON in UTF-8") from None
    if b"\\u0000" in text and _NUL.search(text):
        raise Invalid(f"a {kind.__name__} holds the character NUL, which PostgreSQL cannot store")
    if len(text) > _LARGEST_BYTES:
        raise Invalid(f"a {kind.__name__} is larger than {_LARGEST_BYTES // 1024**2} MiB; store it and enqueue its key")
    return text.decode()


def version_of(event: type[Event] | Event) -> int:
    """Return the version of an event's class."""
    return cast("int", getattr(event, "event_version", 1))


def decode_event(kind: type[Event], version: int, text: str) -> Event:
    """Decode an event; upgrade it from an older version. Raises ValidationError and the errors of `upgrade`."""
    if version < version_of(kind):
        upgrade = getattr(kind, "upgrade", None)
        if upgrade is not None:
            return adapter(kind).validate_python(upgrade(version, json.loads(text)))
    return adapter(kind).validate_json(text)


def problems(error: ValidationError) -> str:
    """Return the problems without values, which may be secret."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(str(part) for part in e['loc']) or 'payload'}: {e['msg']}" for e in found[:5])
