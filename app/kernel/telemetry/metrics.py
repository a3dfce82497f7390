"""Metrics of the process, in the formats of Prometheus. A recording takes a microsecond."""

import functools
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import accumulate
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
from prometheus_client.core import CounterMetricFamily, Exemplar, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.kernel.workers.families import Family, Sample

TEXT, OPENMETRICS = "text/plain", "application/openmetrics-text"
FORMATS = {TEXT: frozenset({"0.0.4"}), OPENMETRICS: frozenset({"0.0.1", "1.0.0"})}
"""Media types of the formats, and the versions that Prometheus accepts."""

disable_created_metrics()  # an unused series per counter


class _Duration:
    """Durations with the same labels."""

    __slots__ = ("_bounds", "counts", "exemplars", "seconds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.exemplars: dict[int, Exemplar] = {}
        self.seconds = 0.0

    def observe(self, seconds: float, example: dict[str, str] | None = None) -> None:
        place = bisect_left(self._bounds, seconds)
        self.counts[place] += 1
        self.seconds += seconds
        if example is not None:
            self.exemplars[place] = Exemplar(example, seconds, time.time())


class _Durations(Collector):
    """A histogram, with an optional counter of its observations. For the thread of the event loop only.

    The library's histogram takes two locks for each observation, and its counter as long again.
    """

    def __init__(
        self, name: str, documentation: str, labels: tuple[str, ...], bounds: tuple[float, ...], counter: str = ""
    ) -> None:
        self.name = name
        self.counter = counter
        self.labels = labels
        self._documentation = documentation
        self._bounds = bounds
        self._durations: dict[tuple[str, ...], _Duration] = {}
        _REGISTRY.register(self)

    def of(self, *values: str) -> _Duration:
        found = self._durations.get(values)
        if found is None:
            found = self._durations[values] = _Duration(self._bounds)
        return found

    def counted(self) -> list[tuple[tuple[str, ...], list[int]]]:
        """Return the numbers of observations since the process started: by labels, and by bound."""
        return [(values, [*found.counts]) for values, found in list(self._durations.items())]

    def describe(self) -> list[Metric]:
        found: list[Metric] = [HistogramMetricFamily(self.name, self._documentation, labels=self.labels)]
        if self.counter:
            found.append(CounterMetricFamily(self.counter, self._documentation, labels=self.labels))
        return found

    def collect(self) -> list[Metric]:
        families: Any = self.describe()
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for values, found in list(self._durations.items()):
            totals = list(accumulate(found.counts))
            examples = [found.exemplars.get(place) for place in range(len(names))]
            families[0].add_metric(values, list(zip(names, totals, examples, strict=True)), found.seconds)
            if self.counter:
                families[1].add_metric(values, totals[-1])
        return families


_REGISTRY = CollectorRegistry()
ProcessCollector(registry=_REGISTRY)

REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper bounds of the durations of requests that are counted together."""
_REQUEST_DURATION = _Durations(
    "http_server_request_duration_seconds",
    "Requests",
    ("method", "route", "status"),
    REQUEST_SECONDS,
    "http_server_requests",
)
_CLIENT_DURATION = _Durations(
    "http_client_request_duration_seconds", "Requests to other services", ("method", "host", "status"), REQUEST_SECONDS
)
_DB_DURATION = _Durations(
    "db_client_operation_duration_seconds", "SQL statements", ("operation", "outcome"), REQUEST_SECONDS
)
_DB_CONNECTIONS = Gauge("db_client_connections", "Connections of the pool", ("state",), registry=_REGISTRY)
_REDIS_DURATION = _Durations(
    "redis_client_operation_duration_seconds", "Commands of Redis", ("operation", "outcome"), REQUEST_SECONDS
)
_REDIS_AVAILABLE = Gauge(
    "redis_client_available", "1, or 0 while processes continue without Redis", ("server",), registry=_REGISTRY
)
_SERVER_CONNECTIONS = Gauge(
    "db_server_connections", "Connections of all clients of a server", ("server", "state"), registry=_REGISTRY
)
_REPLICA_LAG = Gauge("db_replica_lag_seconds", "How old the data of a replica may be", ("replica",), registry=_REGISTRY)
_REPLICA_USED = Gauge("db_replica_used", "1, or 0 for a replica that is left out", ("replica",), registry=_REGISTRY)
_REPLICA_READS = Counter(
    "db_replica_reads",
    "Statements on replicas: done, or repeated on the primary; and reads that the primary took instead",
    ("replica", "outcome"),
    registry=_REGISTRY,
)
_RECONNECTS = Counter(
    "db_listener_reconnects_total", "Times that LISTEN was resumed after an outage", registry=_REGISTRY
)
_NATS_CONNECTIONS = Gauge("nats_client_connections", "Connections to NATS", ("state",), registry=_REGISTRY)
_HTTP_CONNECTIONS = Gauge(
    "http_server_connections", "Connections of clients", ("listener", "state"), registry=_REGISTRY
)
_CERTIFICATE_ENDS = Gauge(
    "http_server_certificate_not_after_seconds",
    "Time at which the certificate that is served ends, or one of those that signed it, in Unix time",
    ("listener",),
    registry=_REGISTRY,
)
_CACHE_LOOKUPS = Counter(
    "cache_lookups_total", "Lookups in the cache of the process", ("cache", "outcome"), registry=_REGISTRY
)
_REFUSED = Counter(
    "http_server_refused_total", "Connections and bodies refused because of a limit", ("reason",), registry=_REGISTRY
)
_CAPTURED = Counter("errors_captured_total", "Errors captured", ("kind",), registry=_REGISTRY)
_DROPPED = Counter("telemetry_dropped_total", "Log lines, spans and errors dropped", ("signal",), registry=_REGISTRY)
for _signal in ("logs", "traces", "errors"):
    _DROPPED.labels(_signal)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_before_scrape: list[Callable[[], None]] = []

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_JOB_DURATION = _Durations("job_duration_seconds", "Attempts at jobs", ("task", "outcome"), _SECONDS, "jobs")
_LEASES_LOST = Counter(
    "job_leases_lost_total", "Completions refused because the lease expired", ("task",), registry=_REGISTRY
)
_DEPTH = Gauge("queue_depth", "Unfinished jobs", ("queue", "state"), registry=_REGISTRY)
_OLDEST = Gauge(
    "queue_oldest_job_age_seconds", "Age of the oldest ready job since it was due", ("queue",), registry=_REGISTRY
)
_UNSENT = Gauge("event_outbox_depth", "Events that wait to be sent to NATS", ("stream",), registry=_REGISTRY)
_OLDEST_UNSENT = Gauge(
    "event_outbox_oldest_age_seconds", "Age of the oldest event that waits for NATS", ("stream",), registry=_REGISTRY
)
_LAG = Gauge("event_consumer_lag", "Events in NATS that wait for a subscriber", ("subscriber",), registry=_REGISTRY)
_LATENESS = Histogram(
    "schedule_lateness_seconds", "Delay between tick and job", ("schedule",), registry=_REGISTRY, buckets=_SECONDS
)


def exposition(media_type: str = TEXT) -> tuple[bytes, bytes]:
    """Return the metrics in a format, and its content type. Only OpenMetrics has exemplars."""
    for refresh in _before_scrape:
        refresh()
    return _exposition(_REGISTRY, media_type)


def snapshot() -> list[Family]:
    """Return the metrics, to be merged with those of other workers."""
    for refresh in _before_scrape:
        refresh()
    return [
        (metric.name, metric.type, metric.documentation, [_plain(sample) for sample in metric.samples])
        for metric in _REGISTRY.collect()
    ]


def exposition_of(families: Iterable[Family], media_type: str = TEXT) -> tuple[bytes, bytes]:
    """Return merged metrics in a format, and its content type."""
    return _exposition(_Merged(families), media_type)


class _Merged(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for name, kind, documentation, samples in self._families:
            metric = Metric(name, documentation, kind)
            for sample, labels, value, exemplar in samples:
                metric.add_sample(sample, labels, value, exemplar=Exemplar(*exemplar) if exemplar else None)
            yield metric


def _plain(sample: Any) -> Sample:
    exemplar = sample.exemplar
    return (sample.name, sample.labels, sample.value, list(exemplar) if exemplar else None)


def _exposition(registry: Any, media_type: str) -> tuple[bytes, bytes]:
    if media_type == TEXT:
        return generate_latest(registry), b"text/plain; version=0.0.4; charset=utf-8"
    from prometheus_client.openmetrics import exposition as openmetrics

    partly_annotated: Any = openmetrics
    return partly_annotated.generate_latest(registry), b"application/openmetrics-text; version=1.0.0; charset=utf-8"


def register(collector: Collector) -> None:
    """Expose the metrics of a part that not every process has."""
    _REGISTRY.register(collector)


def before_scrape(refresh: Callable[[], None]) -> Callable[[], None]:
    """Call `refresh` before each scrape. Returns the function that stops it."""
    _before_scrape.append(refresh)
    return lambda: _before_scrape.remove(refresh)


def dropped(signal: str, count: int = 1) -> None:
    """Count dropped telemetry: `logs`, `traces` or `errors`."""
    _DROPPED.labels(signal).inc(count)


def error_captured(kind: str) -> None:
    """Count a captured error."""
    _of_error(kind).inc()


def counted() -> tuple[list[tuple[tuple[str, ...], list[int]]], list[tuple[tuple[str, ...], list[int]]], int]:
    """Return what the process has counted since it started: requests, attempts at jobs, and captured errors.

    Requests are by method, route and status, attempts by task and outcome, and both by duration.
    """
    errors = sum(sample.value for metric in _CAPTURED.collect() for sample in metric.samples)
    return _REQUEST_DURATION.counted(), _JOB_DURATION.counted(), int(errors)


@functools.cache
def _of_error(kind: str) -> Counter:
    return _CAPTURED.labels(kind)


def request_ended(method: str, route: str, status: int, seconds: float, exemplar: dict[str, str] | None = None) -> None:
    """Record a request. `route` is a template or empty, never a path, to limit the number of series."""
    known = method if method in _METHODS else "other"
    _REQUEST_DURATION.of(known, route or "none", str(status)).observe(seconds, exemplar)


def outgoing_request_ended(
    method: str, host: str, status: str, seconds: float, exemplar: dict[str, str] | None = None
) -> None:
    """Record a request to another service; `status` is `error` without a response. Callers limit the hosts."""
    known = method if method in _METHODS else "other"
    _CLIENT_DURATION.of(known, host, status).observe(seconds, exemplar)


def statement_ended(operation: str, outcome: str, seconds: float) -> None:
    """Record a SQL statement: its first word, and `done` or `failed`."""
    _DB_DURATION.of(operation, outcome).observe(seconds)


def redis_ended(operation: str, outcome: str, seconds: float) -> None:
    """Record a command of Redis: its name, and `done` or `failed`."""
    _REDIS_DURATION.of(operation, outcome).observe(seconds)


def redis_available(server: str, is_available: bool) -> None:
    """Record whether Redis is used."""
    _REDIS_AVAILABLE.labels(server).set(is_available)


def connections(used: int, idle: int, waiting: int, most: int) -> None:
    """Record the state of the pool: connections in use and idle, waiting requests, maximum size."""
    for state, value in (("used", used), ("idle", idle), ("waiting", waiting), ("max", most)):
        _DB_CONNECTIONS.labels(state).set(value)


def replica_measured(replica: str, lag_s: float, *, is_used: bool) -> None:
    """Record how far a replica lags, and whether it is used."""
    _REPLICA_LAG.labels(replica).set(lag_s)
    _REPLICA_USED.labels(replica).set(is_used)


def replica_at_rest(replica: str) -> None:
    """Record that a replica is the primary now."""
    for gauge in (_REPLICA_LAG, _REPLICA_USED):
        gauge.remove(replica)


def replica_read(replica: str, outcome: str) -> None:
    """Count a statement on a replica: `done`, or `repeated` on the primary. `none` is a read on the `primary`."""
    _REPLICA_READS.labels(replica, outcome).inc()


class CacheLookups:
    """Lookups in a cache since the last scrape. A counter of the library would cost more than the lookup."""

    __slots__ = ("bypassed", "hits", "misses")

    def __init__(self) -> None:
        self.hits = self.misses = self.bypassed = 0


def cache_lookups(cache: str) -> CacheLookups:
    """Return what counts the lookups in a cache: hits, misses, and those that bypassed it."""
    counts = CacheLookups()

    def collect() -> None:
        for outcome, count in (("hit", counts.hits), ("miss", counts.misses), ("bypassed", counts.bypassed)):
            _CACHE_LOOKUPS.labels(cache, outcome).inc(count)
        counts.hits = counts.misses = counts.bypassed = 0

    before_scrape(collect)
    return counts


def server_connections(server: str, **states: int) -> None:
    """Record the connections of all clients of a server or a pooler: `used`, `max`, and `waiting` for a session."""
    for state, value in states.items():
        _SERVER_CONNECTIONS.labels(server, state).set(value)


def listener_reconnected() -> None:
    """Count an outage of the listening connection that is over."""
    _RECONNECTS.inc()


def nats_connected(*, is_connected: bool) -> None:
    """Record whether the process is connected to NATS."""
    _NATS_CONNECTIONS.labels("open").set(is_connected)


def events_unsent(stream: str, count: int, oldest_s: float) -> None:
    """Record the number of events that wait to be sent to a stream, and the age of the oldest in seconds."""
    _UNSENT.labels(stream).set(count)
    _OLDEST_UNSENT.labels(stream).set(oldest_s)


def events_waiting(subscriber: str, count: int) -> None:
    """Record the number of events in NATS that wait for a subscriber."""
    _LAG.labels(subscriber).set(count)


def http_connections(listener: str, used: int, idle: int, most: int) -> None:
    """Record client connections of a listener: all, the idle ones, and the maximum."""
    for state, value in (("open", used), ("idle", idle), ("max", most)):
        _HTTP_CONNECTIONS.labels(listener, state).set(value)


def certificate_served(listener: str, until: datetime) -> None:
    """Record the end of validity of the certificate that new connections get."""
    _CERTIFICATE_ENDS.labels(listener).set(until.timestamp())


def client_refused(reason: str) -> None:
    """Count a refused connection or body: `full`, `address`, `files`, `body` or `tls`."""
    _REFUSED.labels(reason).inc()


def job_ended(task: str, outcome: str, seconds: float, exemplar: dict[str, str] | None = None) -> None:
    """Record an attempt at a job."""
    _JOB_DURATION.of(task, outcome).observe(seconds, exemplar)


def lease_lost(task: str, count: int = 1) -> None:
    """Count refused completions."""
    _LEASES_LOST.labels(task).inc(count)


def schedule_fired(schedule: str, lateness_s: float) -> None:
    """Record the delay of a tick that became a job."""
    _LATENESS.labels(schedule).observe(max(0.0, lateness_s))


def queues_measured(found: Iterable[tuple[str, str, int, float]]) -> None:
    """Replace the metrics of queues: queue, state, count, and age of the oldest job in seconds."""
    _DEPTH.clear()
    _OLDEST.clear()
    for queue, state, count, oldest_s in found:
        _DEPTH.labels(queue, state).set(count)
        if state == "ready":
            _OLDEST.labels(queue).set(oldest_s)
