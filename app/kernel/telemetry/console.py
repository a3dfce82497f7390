"""Lines of the console format that fit the terminal of a person."""

import re
from collections.abc import Callable, Mapping, Sequence

WIDTH = 100
_SHORTEST = 16
_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{4}([0-9a-f]{8})", re.IGNORECASE)


def fitted(fill: Callable[[Sequence[object]], str], values: Sequence[object], room: int) -> str:
    """Return the text of some values in at most `room` characters: ids become their end, long texts lose their middle.

    Numbers stay whole, so it may be longer when there is nothing else to shorten.
    """
    texts = [_with_short_ids(value) if isinstance(value, str) else value for value in values]
    while (excess := len(fill(texts)) - room) > 0:
        longest = max((text for text in texts if isinstance(text, str)), key=len, default="")
        if len(longest) <= _SHORTEST:
            break
        texts[texts.index(longest)] = _cut(longest, max(_SHORTEST, len(longest) - excess))
    return fill(texts)


def few(about: Mapping[str, str], room: int) -> str:
    """Return the first fields that fit in the room."""
    found = ""
    for key, value in about.items():
        more = f"{found or ' '} {key}={_with_short_ids(value)}"
        if len(more) > room:
            break
        found = more
    return found


def _with_short_ids(text: str) -> str:
    return _ID.sub("\N{HORIZONTAL ELLIPSIS}\\1", text) if "-" in text else text


def _cut(text: str, length: int) -> str:
    begin = (length - 1) // 2
    return f"{text[:begin]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (length - 1 - begin) :]}"
