"""Spans of ours, through OpenTelemetry's API."""

import pytest
from opentelemetry import trace
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags

from app.kernel.telemetry.spans import ExportedSpan

REMOTE = SpanContext(1 << 100, 7, True, TraceFlags(1))


def begun(ended: list[ExportedSpan], parent: SpanContext | None = None) -> ExportedSpan:
    return ExportedSpan("work", SpanKind.INTERNAL, parent, {"a": 1}, ended.append)


def test_a_span_is_current_inside_and_is_exported_once_when_it_ends() -> None:
    ended: list[ExportedSpan] = []
    with begun(ended) as span:
        assert trace.get_current_span() is span
        assert span.is_recording()
        assert not ended
    assert trace.get_current_span() is trace.INVALID_SPAN
    span.end()
    assert ended == [span]
    assert not span.is_recording()
    assert span.ended_at >= span.started_at


def test_a_child_belongs_to_the_trace_of_its_parent_and_a_root_begins_one() -> None:
    child, root, other = begun([], REMOTE), begun([]), begun([])
    assert child.get_span_context().trace_id == REMOTE.trace_id
    assert child.parent is REMOTE
    contexts = [span.get_span_context() for span in (root, other)]
    assert contexts[0].trace_id != contexts[1].trace_id
    assert contexts[0].span_id != contexts[1].span_id
    assert all(context.is_valid and context.trace_flags.sampled for context in contexts)


def test_modules_may_use_the_whole_api() -> None:
    ended: list[ExportedSpan] = []
    with begun(ended):
        current = trace.get_current_span()
        current.set_attribute("order", 5)
        current.set_attributes({"tags": ["a", "b"], "who": object})
        current.add_event("packed", {"boxes": 2})
        current.add_link(REMOTE)
        current.update_name("pack")
        current.set_status(StatusCode.OK)
    (span,) = ended
    assert span.name == "pack"
    assert span.attributes == {"a": 1, "order": 5, "tags": ["a", "b"], "who": "<class 'object'>"}
    assert [(name, attributes) for name, _, attributes in span.events] == [("packed", {"boxes": 2})]
    assert [link.context for link in span.links] == [REMOTE]
    assert isinstance(span.links[0], Link)
    assert span.status.status_code is StatusCode.OK


def test_of_an_exception_only_the_type_is_kept() -> None:
    ended: list[ExportedSpan] = []
    span = begun(ended)
    span.record_exception(ValueError("hunter2"))
    with pytest.raises(ValueError, match="hunter2"), span:
        raise ValueError("hunter2")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "ValueError"
    assert [attributes for _, _, attributes in span.events] == [{"exception.type": "ValueError"}]


def test_a_span_does_not_grow_without_bound_and_not_after_its_end() -> None:
    span = begun([])
    for number in range(500):
        span.set_attribute(str(number), number)
        span.add_event(str(number))
        span.add_link(REMOTE)
    assert (len(span.attributes), len(span.events), len(span.links)) == (128, 128, 128)
    span.end()
    span.set_attribute("a", 2)
    assert span.attributes["a"] == 1
