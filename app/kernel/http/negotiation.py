"""Which of several representations a client would rather have (RFC 9110, section 12.5.1)."""

import re
from collections.abc import Iterator, Mapping

from app.kernel.http.asgi import Scope

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf"""[ \t]*;(?:[ \t]*({_WORD})=({_WORD}|"[^"\\]*"))?""")
_RANGE = re.compile(rf"[ \t]*({_WORD}/{_WORD})((?:{_PARAMETER.pattern})*)[ \t]*")
_ELEMENT = re.compile(r"""(?:[^,"]|"[^"]*")+""")
_QUALITY = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
_LONGEST = 4096


def preferred(scope: Scope, offered: Mapping[str, frozenset[str]]) -> str:
    """Return the media type that the request's `Accept` puts first, and the first offered if it wants none of them.

    `offered` has the versions that each type may be asked for in. Of equals the one that is named more exactly wins,
    then the first offered. What is malformed is passed over.
    """
    accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
    ranges = list(_ranges(accept[:_LONGEST].decode("latin-1").lower()))
    best, best_rank = next(iter(offered)), (0.0, 0)
    for media_type, versions in offered.items():
        exactness, quality = max(_matches(ranges, media_type, versions), default=(0, 0.0))
        if quality > 0 and (quality, exactness) > best_rank:
            best, best_rank = media_type, (quality, exactness)
    return best


def _ranges(accept: str) -> Iterator[tuple[str, str, float]]:
    """Find media range, version and quality of each well-formed element."""
    for element in _ELEMENT.findall(accept):
        if (found := _RANGE.fullmatch(element)) is None:
            continue
        parameters = dict(_PARAMETER.findall(found[2]))
        quality = parameters.get("q", "1")
        if _QUALITY.fullmatch(quality):
            yield found[1], parameters.get("version", "").strip('"'), float(quality)


def _matches(
    ranges: list[tuple[str, str, float]], media_type: str, versions: frozenset[str]
) -> Iterator[tuple[int, float]]:
    """Find how exactly each range that covers the type names it, and how much it is wanted."""
    for name, version, quality in ranges:
        if name == media_type and (not version or version in versions):
            yield (4 if version else 3), quality
        elif name == f"{media_type.partition('/')[0]}/*":
            yield 2, quality
        elif name == "*/*":
            yield 1, quality
