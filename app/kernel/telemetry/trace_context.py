"""The header fields `traceparent` and `tracestate` (W3C Trace Context, level 1).

Keys of `tracestate` follow level 2, as the W3C test suite requires.
"""

import re

from opentelemetry.trace import SpanContext, TraceFlags, TraceState

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEY = r"[a-z0-9][a-z0-9_\-*/@]{0,255}"
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(f"({_KEY})=({_VALUE})")
_OWS = " \t"
_MEMBERS = 32
_LONG = 128
_LENGTH = 512
_FLAGS = (TraceFlags(0), TraceFlags(TraceFlags.SAMPLED))


def parsed(traceparent: str, tracestate: str = "") -> SpanContext | None:
    """Return the span context of the fields, or None when `traceparent` is invalid.

    Only the flag `sampled` is kept. An invalid `tracestate` is ignored.
    """
    match = _TRACEPARENT.fullmatch(traceparent.strip(_OWS))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    sampled = _FLAGS[int(flags, 16) & TraceFlags.SAMPLED]
    found = SpanContext(int(trace_id, 16), int(span_id, 16), True, sampled, _state(tracestate) if tracestate else None)
    return found if found.is_valid else None


def from_headers(headers: list[tuple[bytes, bytes]]) -> SpanContext | None:
    """Return the span context of request headers, or None unless they have one valid `traceparent`."""
    parent = None
    states: list[bytes] = []
    for name, value in headers:
        if name == b"traceparent":
            if parent is not None:
                return None
            parent = value
        elif name == b"tracestate":
            states.append(value)
    if parent is None:
        return None
    return parsed(parent.decode("latin-1"), b",".join(states).decode("latin-1"))


def traceparent(context: SpanContext) -> str:
    """Return the `traceparent` of a span."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def tracestate(context: SpanContext) -> str:
    """Return the `tracestate` of a span, or an empty text: at most 512 characters.

    Members of more than 128 characters are dropped first, then members at the end (section 3.3.1.5).
    """
    if not context.trace_state:
        return ""
    members = [f"{key}={value}" for key, value in context.trace_state.items()]
    for limit in (_LONG, 0):
        for member in reversed(members.copy()):
            if sum(map(len, members)) + len(members) - 1 <= _LENGTH:
                break
            if len(member) > limit:
                members.remove(member)
    return ",".join(members)


def _state(text: str) -> TraceState | None:
    """Return the members of a `tracestate`, the first one of each key, or None when it is invalid."""
    found: dict[str, str] = {}
    members = [stripped for member in text.split(",") if (stripped := member.strip(_OWS))]
    if len(members) > _MEMBERS:
        return None
    for member in members:
        match = _MEMBER.fullmatch(member)
        if match is None:
            return None
        found.setdefault(match[1], match[2])
    return _State(found)


class _State(TraceState):
    """Members checked here, because OpenTelemetry drops keys of level 2."""

    def __init__(self, members: dict[str, str]) -> None:
        super().__init__()
        self._dict = members
