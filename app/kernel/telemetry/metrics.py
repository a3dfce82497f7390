"""Metrics of the process, in the formats of Prometheus. Recording costs a microsecond."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS = b"application/openmetrics-text"
Exemplar = dict[str, str] | None

disable_created_metrics()  # a series more for each counter, which nothing asks for


class _CountOf(Collector):
    """A counter of what a histogram has measured, made when it is asked for."""

    def __init__(self, measured: Histogram, name: str, documentation: str) -> None:
        self._measured = measured
        self._name = name
        self._documentation = documentation

    def describe(self) -> list[CounterMetricFamily]:
        return [CounterMetricFamily(self._name, self._documentation)]

    def collect(self) -> Iterator[CounterMetricFamily]:
        counter = CounterMetricFamily(self._name, self._documentation)
        for family in self._measured.collect():
            for sample in family.samples:
                if sample.name.endswith("_count"):
                    counter.add_sample(f"{self._name}_total", sample.labels, sample.value)
        yield counter


_REGISTRY = CollectorRegistry()
ProcessCollector(registry=_REGISTRY)

_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_REQUEST_DURATION = Histogram(
    "http_server_request_duration_seconds",
    "Duration of requests",
    ("method", "route", "status"),
    registry=_REGISTRY,
    buckets=_REQUEST_SECONDS,
)
_REGISTRY.register(_CountOf(_REQUEST_DURATION, "http_server_requests", "Requests"))
_DB_DURATION = Histogram(
    "db_client_operation_duration_seconds",
    "Duration of SQL statements",
    ("operation", "outcome"),
    registry=_REGISTRY,
    buckets=_REQUEST_SECONDS,
)
_DB_CONNECTIONS = Gauge("db_client_connections", "Connections of the pool", ("state",), registry=_REGISTRY)
_CAPTURED = Counter("errors_captured_total", "Errors captured", ("kind",), registry=_REGISTRY)
_DROPPED = Counter(
    "telemetry_dropped_total", "Log lines, spans and errors that were not kept", ("signal",), registry=_REGISTRY
)
for _signal in ("logs", "traces", "errors"):
    _DROPPED.labels(_signal)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_before_scrape: list[Callable[[], None]] = []

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_JOB_DURATION = Histogram(
    "job_duration_seconds", "Duration of attempts at jobs", ("task", "outcome"), registry=_REGISTRY, buckets=_SECONDS
)
_REGISTRY.register(_CountOf(_JOB_DURATION, "jobs", "Attempts at jobs"))
_LEASES_LOST = Counter(
    "job_leases_lost_total", "Completions refused: the lease was lost", ("task",), registry=_REGISTRY
)
_DEPTH = Gauge("queue_depth", "Unfinished jobs", ("queue", "state"), registry=_REGISTRY)
_OLDEST = Gauge(
    "queue_oldest_job_age_seconds", "How long the oldest ready job has been due", ("queue",), registry=_REGISTRY
)
_LATENESS = Histogram(
    "schedule_lateness_seconds", "From tick to job", ("schedule",), registry=_REGISTRY, buckets=_SECONDS
)


def exposition(accept: bytes = b"") -> tuple[bytes, bytes]:
    """Return the present values, and their content type: OpenMetrics 1.0, which has exemplars, to who accepts it.

    Safe to repeat.
    """
    for refresh in _before_scrape:
        refresh()
    if _OPENMETRICS not in accept:
        return generate_latest(_REGISTRY), _TEXT
    from prometheus_client.openmetrics import exposition as openmetrics

    partly_annotated: Any = openmetrics
    return partly_annotated.generate_latest(_REGISTRY), _OPENMETRICS + b"; version=1.0.0; charset=utf-8"


def before_scrape(refresh: Callable[[], None]) -> Callable[[], None]:
    """Call this before values are returned, until the function that is returned is called."""
    _before_scrape.append(refresh)
    return lambda: _before_scrape.remove(refresh)


def dropped(signal: str, count: int = 1) -> None:
    """Note that telemetry was not kept: `logs`, `traces` or `errors`."""
    _DROPPED.labels(signal).inc(count)


def error_captured(kind: str) -> None:
    """Note that an error was captured."""
    _of_error(kind).inc()


@functools.cache
def _of_error(kind: str) -> Counter:
    return _CAPTURED.labels(kind)


def request_ended(method: str, route: str, status: int, seconds: float, exemplar: Exemplar = None) -> None:
    """Note a request. `route` is a template or empty, never a path: the number of routes is bounded."""
    _of_request(method if method in _METHODS else "other", route or "none", status).observe(seconds, exemplar)


@functools.cache
def _of_request(method: str, route: str, status: int) -> Histogram:
    return _REQUEST_DURATION.labels(method, route, str(status))


def statement_ended(operation: str, outcome: str, seconds: float) -> None:
    """Note a SQL statement: its first word, and `done` or `failed`."""
    _of_statement(operation, outcome).observe(seconds)


@functools.cache
def _of_statement(operation: str, outcome: str) -> Histogram:
    return _DB_DURATION.labels(operation, outcome)


def connections(used: int, idle: int, waiting: int, most: int) -> None:
    """Note the state of the pool: connections used and idle, requests waiting for one, and the most there may be."""
    for state, value in (("used", used), ("idle", idle), ("waiting", waiting), ("max", most)):
        _DB_CONNECTIONS.labels(state).set(value)


def job_ended(task: str, outcome: str, seconds: float, exemplar: Exemplar = None) -> None:
    """Note an attempt at a job."""
    _of_job(task, outcome).observe(seconds, exemplar)


@functools.cache
def _of_job(task: str, outcome: str) -> Histogram:
    return _JOB_DURATION.labels(task, outcome)


def lease_lost(task: str, count: int = 1) -> None:
    """Note that completions were refused."""
    _LEASES_LOST.labels(task).inc(count)


def schedule_fired(schedule: str, lateness_s: float) -> None:
    """Note that a tick became a job."""
    _LATENESS.labels(schedule).observe(max(0.0, lateness_s))


def queues_measured(found: Iterable[tuple[str, str, int, float]]) -> None:
    """Note queue, state, count, and the age in seconds of the oldest; what is not among them is gone."""
    _DEPTH.clear()
    _OLDEST.clear()
    for queue, state, count, oldest_s in found:
        _DEPTH.labels(queue, state).set(count)
        if state == "ready":
            _OLDEST.labels(queue).set(oldest_s)
