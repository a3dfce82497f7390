"""Metrics of the process, in Prometheus' text format. Recording costs a microsecond."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_REGISTRY = CollectorRegistry()
ProcessCollector(registry=_REGISTRY)

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
    return generate_latest(_REGISTRY)


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
