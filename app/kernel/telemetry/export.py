"""Exports spans over OTLP with the OpenTelemetry SDK, which is imported only when an endpoint is configured.

A thread sends spans from a bounded queue. Spans are dropped and counted when the collector is unavailable or slow.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import requests
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from app.kernel.config import Misconfigured, TelemetrySettings
from app.kernel.process import Process
from app.kernel.product import NAME, VERSION
from app.kernel.services import Run
from app.kernel.telemetry import metrics, traces
from app.kernel.telemetry.spans import ExportedSpan

_QUEUE = 4096
_BATCH = 512
_EVERY_MS = 1000
_SEND_S = 5
_LAST_MS = 2000


class _Counted(SpanExporter):
    """Exports spans; counts the lost ones."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self.taken = 0  # written only by the exporting thread

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = self._inner.export(spans)
        if result is not SpanExportResult.SUCCESS:
            metrics.dropped("traces", len(spans))
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class _Bounded(SpanProcessor):
    """Passes spans to the batch processor unless its queue is full; it would drop the oldest without counting."""

    def __init__(self, exporter: _Counted) -> None:
        self._exporter = exporter
        self._given = 0
        self._batches = BatchSpanProcessor(
            exporter, max_queue_size=_QUEUE, max_export_batch_size=_BATCH, schedule_delay_millis=_EVERY_MS
        )

    def on_end(self, span: ReadableSpan) -> None:
        if not (span.context and span.context.trace_flags.sampled):
            return
        if self._given - self._exporter.taken >= _QUEUE - 1:
            metrics.dropped("traces")
            return
        self._given += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        self._batches.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._batches.force_flush(timeout_millis)


class _Resource(Resource):
    """Caches its hash, which is computed from JSON and used for each span."""

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash


def span_exporter(p: Process, settings: TelemetrySettings) -> Run:
    """Start exporting spans; return the service that flushes them. Raises Misconfigured without the gRPC package."""
    for name in ("opentelemetry.sdk", "opentelemetry.exporter"):  # they log each lost span or batch
        logging.getLogger(name).setLevel(logging.CRITICAL)
    attributes = {"service.name": p.name, "service.version": VERSION, "service.namespace": NAME}
    resource = _Resource(Resource.create(attributes).attributes)
    sending = _Bounded(_Counted(_otlp(settings)))
    # for spans made by libraries
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), resource=resource)
    provider.add_span_processor(sending)
    trace.set_tracer_provider(provider)
    scope = InstrumentationScope(NAME, VERSION)
    traces.switch_on(settings.trace_ratio, lambda span: sending.on_end(_readable(span, resource, scope)))

    async def run(stop: asyncio.Event) -> None:
        await stop.wait()
        await asyncio.to_thread(provider.force_flush, _LAST_MS)

    return run


def _readable(span: ExportedSpan, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=resource,
        attributes=span.attributes,
        events=[Event(name, attributes, at) for name, at, attributes in span.events] if span.events else (),
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.started_at,
        end_time=span.ended_at,
        instrumentation_scope=scope,
    )


def _otlp(settings: TelemetrySettings) -> SpanExporter:
    headers = _headers(settings)
    endpoint: Any = settings.otlp_endpoint
    if settings.otlp_protocol == "grpc":
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # pyright: ignore[reportMissingImports]
                OTLPSpanExporter as Grpc,  # pyright: ignore[reportUnknownVariableType]
            )
        except ImportError:
            raise Misconfigured(
                "telemetry.otlp_protocol: grpc needs opentelemetry-exporter-otlp-proto-grpc",
                hint="pip install 'opentelemetry-exporter-otlp-proto-grpc>=1.40'",
            ) from None
        return Grpc(endpoint=endpoint, headers=headers, timeout=_SEND_S)  # pyright: ignore[reportUnknownVariableType]
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    session = _Session(settings)
    endpoint = f"{endpoint.rstrip('/')}/v1/traces"
    return OTLPSpanExporter(endpoint=endpoint, headers=headers, timeout=_SEND_S, session=session)


class _Session(requests.Session):
    """Sends the headers of the settings as they are now."""

    def __init__(self, settings: TelemetrySettings) -> None:
        super().__init__()
        self._settings = settings

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        self.headers.update(_headers(self._settings))
        return super().post(*args, **kwargs)


def _headers(settings: TelemetrySettings) -> dict[str, str]:
    pairs = settings.otlp_headers.get_secret_value().split()
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
