"""Metrics of the process, in Prometheus' text format. Recording costs a microsecond."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

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
_REQUESTS = Counter("http_server_requests_total", "Requests", ("method", "route", "status"), registry=_REGISTRY)
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
_JOBS = Counter("jobs_total", "Attempts at jobs", ("task", "outcome"), registry=_REGISTRY)
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


def exposition() -> bytes:
    """Return the present values. Safe to repeat."""
    for refresh in _before_scrape:
        refresh()
    return generate_latest(_REGISTRY)


def before_scrape(refresh: Callable[[], None]) -> Callable[[], None]:
    """Call this before values are returned, until the function that is returned is called."""
    _before_scrape.append(refresh)
    return lambda: _before_scrape.remove(refresh)


def dropped(signal: str, count: int = 1) -> None:
    """Note that telemetry was not kept: `logs`, `traces` or `errors`."""
    _DROPPED.labels(signal).inc(count)


def error_captured(kind: str) -> None:
    """Note that an error was captured."""
    _CAPTURED.labels(kind).inc()


def request_ended(method: str, route: str, status: int, seconds: float) -> None:
    """Note a request. `route` is a template or empty, never a path: the number of routes is bounded."""
    labels = (method if method in _METHODS else "other", route or "none", str(status))
    _REQUESTS.labels(*labels).inc()
    _REQUEST_DURATION.labels(*labels).observe(seconds)


def statement_ended(operation: str, outcome: str, seconds: float) -> None:
    """Note a SQL statement: its first word, and `done` or `failed`."""
    _DB_DURATION.labels(operation, outcome).observe(seconds)


def connections(used: int, idle: int, waiting: int, most: int) -> None:
    """Note the state of the pool: connections used and idle, requests waiting for one, and the most there may be."""
    for state, value in (("used", used), ("idle", idle), ("waiting", waiting), ("max", most)):
        _DB_CONNECTIONS.labels(state).set(value)


def job_ended(task: str, outcome: str, seconds: float) -> None:
    """Note an attempt at a job."""
    _JOBS.labels(task, outcome).inc()
    _JOB_DURATION.labels(task, outcome).observe(seconds)


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
