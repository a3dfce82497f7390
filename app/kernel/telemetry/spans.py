"""Exported spans, at a third of the cost of the SDK's, which locks, copies and converts at each change."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, cast

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import Attributes, AttributeValue

from app.kernel.text import shown, storable

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SPAN_ID = 0xFFFF_FFFF_FFFF_FFFF
_MOST = 128  # of attributes, events and links of a span each, as in the SDK
_UNSET = Status()


class ExportedSpan(Span):
    """A span of OpenTelemetry's API. As a context manager, it is the current span, and ends at the exit.

    It records only the type of an exception, because messages may contain secrets. Not thread-safe.
    """

    __slots__ = (
        "_context",
        "_ended",
        "_token",
        "_within",
        "attributes",
        "ended_at",
        "events",
        "kind",
        "links",
        "name",
        "parent",
        "started_at",
        "status",
    )

    def __init__(
        self,
        name: str,
        kind: SpanKind,
        parent: SpanContext | None,
        attributes: Mapping[str, AttributeValue] | None,
        ended: "Callable[[ExportedSpan], None]",
        within: Context | None = None,
    ) -> None:
        """Start the span. `ended` is called at its end; `within` is the context, by default the current one."""
        bits = random.getrandbits(192)  # ids are not secret
        trace_id, state = (parent.trace_id, parent.trace_state) if parent else (bits >> 64 or 1, None)
        self._context = SpanContext(trace_id, bits & _SPAN_ID or 1, False, _SAMPLED, state)
        self._ended = ended
        self._within = within
        self.name = storable(name)
        self.kind = kind
        self.parent = parent
        self.attributes: dict[str, AttributeValue] = (
            {key: _plain(value) for key, value in attributes.items()} if attributes else {}
        )
        self.events: Sequence[tuple[str, int, dict[str, AttributeValue]]] = ()
        self.links: Sequence[Link] = ()
        self.status = _UNSET
        self.started_at = time.time_ns()
        self.ended_at = 0

    def __enter__(self) -> "ExportedSpan":
        self._token = context.attach(trace.set_span_in_context(self, self._within))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        context.detach(self._token)
        if kind is not None:
            self.set_status(StatusCode.ERROR, kind.__name__)
        self.end()

    def end(self, end_time: int | None = None) -> None:
        if not self.ended_at:
            self.ended_at = end_time or time.time_ns()
            self._ended(self)

    def get_span_context(self) -> SpanContext:
        return self._context

    def is_recording(self) -> bool:
        return not self.ended_at

    def set_attribute(self, key: str, value: Any) -> None:
        if not self.ended_at and (len(self.attributes) < _MOST or key in self.attributes):
            self.attributes[key] = _plain(value)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def update_name(self, name: str) -> None:
        self.name = storable(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        if self.status.status_code is not StatusCode.OK:  # OK is final (OpenTelemetry, Trace API, Set Status)
            self.status = status if isinstance(status, Status) else Status(status, description)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        if not self.ended_at and len(self.events) < _MOST:
            plain = {key: _plain(value) for key, value in (attributes or {}).items()}
            self.events = (*self.events, (storable(name), timestamp or time.time_ns(), plain))

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        if not self.ended_at and len(self.links) < _MOST:
            self.links = (*self.links, Link(context, attributes))

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: ARG002 - the signature is OpenTelemetry's
    ) -> None:
        self.add_event("exception", {**(attributes or {}), "exception.type": type(exception).__qualname__}, timestamp)


def _plain(value: Any) -> Any:
    """Return a value that can be exported; others would make the whole batch fail."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[object]", value)]
    return storable(shown(value))
