"""What a load needs: cores, processes, connections, storage and WAL, from constants that were measured."""

import math
from dataclasses import dataclass

from app.kernel.config import KeepSettings, PostgresSettings, QueueSettings

_DAY = 86400.0
_BUSY = 0.6
"""Share of a core that is planned with: the rest is for peaks, restarts and the loss of a machine."""
_ROUNDS = 300.0
"""Rounds of fetching and completing a second, above which jobs share rounds."""
_LEAST = 2
"""Processes of a kind, so that one may be replaced or lost."""
OWN_CONNECTIONS = 3
"""Connections of a process beside its pool: for notifications, the renewal of leases, maintenance."""


@dataclass(frozen=True, slots=True)
class Constants:
    """Costs of one unit: CPU seconds of our process and of PostgreSQL, bytes of storage and of WAL.

    A job alone costs a round of its own, in batches a part of one.
    """

    request_s: float
    request_postgres_s: float
    job_s: float
    job_postgres_s: float
    batched_job_s: float
    batched_job_postgres_s: float
    job_bytes: float
    job_wal_bytes: float
    event_postgres_s: float
    event_bytes: float
    event_wal_bytes: float
    session_bytes: float
    audit_bytes: float
    sign_in_wal_bytes: float


MEASURED = Constants(
    request_s=172e-6,
    request_postgres_s=0,
    job_s=773e-6,
    job_postgres_s=1154e-6,
    batched_job_s=54e-6,
    batched_job_postgres_s=121e-6,
    job_bytes=312,
    job_wal_bytes=1643,
    event_postgres_s=137e-6,
    event_bytes=212,
    event_wal_bytes=383,
    session_bytes=245,
    audit_bytes=574,
    sign_in_wal_bytes=1286,
)
"""By `benchmarks.capacity` on two x86-64 cores under other work, Python 3.11, PostgreSQL 18. Quiet cores need less.

`request_s` is of `benchmarks.http`, on a quiet machine.
"""


@dataclass(frozen=True, slots=True)
class Load:
    """A load: rates a second, and the number of live sessions."""

    requests: float
    jobs: float
    events: float
    subscribers: int
    sessions: int
    sign_ins_s: float
    job_time_s: float

    @property
    def all_jobs(self) -> float:
        """Jobs a second, with those of subscribers."""
        return self.jobs + self.events * self.subscribers


@dataclass(frozen=True, slots=True)
class Need:
    """A quantity that a load needs; `limit` is what there is, if it is known."""

    what: str
    value: float
    unit: str
    why: str
    limit: float | None = None

    @property
    def fits(self) -> bool:
        """Whether there is enough."""
        return self.limit is None or self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Retained:
    """Seconds for which things are kept."""

    jobs_s: float
    events_s: float
    audit_s: float

    @classmethod
    def of(cls, keep: KeepSettings, days: float | None) -> "Retained":
        """Return the settings, or `days` for jobs and events."""
        seconds = None if days is None else days * _DAY
        return cls(seconds or keep.finished_jobs, seconds or keep.events, keep.audit)


def cpu_s(load: Load, of: Constants = MEASURED) -> tuple[float, float, float]:
    """Return the CPU seconds a second of API processes, of consumers and of PostgreSQL."""
    alone = min(load.all_jobs, _ROUNDS)
    consumers = load.all_jobs * of.batched_job_s + alone * (of.job_s - of.batched_job_s)
    jobs = load.all_jobs * of.batched_job_postgres_s + alone * (of.job_postgres_s - of.batched_job_postgres_s)
    postgres = load.requests * of.request_postgres_s + jobs + load.events * of.event_postgres_s
    return load.requests * of.request_s, consumers, postgres


def wal_bytes(load: Load, of: Constants = MEASURED) -> float:
    """Return the bytes of WAL a second."""
    queued = load.all_jobs * of.job_wal_bytes + load.events * of.event_wal_bytes
    return queued + load.sign_ins_s * of.sign_in_wal_bytes


def plan(
    load: Load, kept: Retained, postgres: PostgresSettings, queue: QueueSettings, most: int, of: Constants = MEASURED
) -> list[Need]:
    """Return what a load needs. `most` is max_connections of the server."""
    api, consumers, server = cpu_s(load, of)
    at_once = load.all_jobs * load.job_time_s
    api_workers = max(_LEAST, math.ceil(api / _BUSY))
    consumer_workers = max(_LEAST, math.ceil(consumers / _BUSY), math.ceil(at_once / queue.concurrency))
    processes = api_workers + consumer_workers + _LEAST
    open_at_most = processes * (postgres.pool_size + OWN_CONNECTIONS)
    day = _DAY / 1e9
    stored = {
        "finished jobs": (load.all_jobs * kept.jobs_s * of.job_bytes, f"kept for {kept.jobs_s / _DAY:g} days"),
        "events": (load.events * kept.events_s * of.event_bytes, f"kept for {kept.events_s / _DAY:g} days"),
        "sessions": (
            (load.sessions + load.sign_ins_s * 7 * _DAY) * of.session_bytes,
            "live ones, and a week of ended ones",
        ),
        "audit": (load.sign_ins_s * kept.audit_s * of.audit_bytes, f"sign-ins of {kept.audit_s / _DAY:g} days"),
    }
    wal = wal_bytes(load, of)
    return [
        Need("API workers", api_workers, "", f"{api:.2f} cores at {_BUSY:.0%}; run-auth-http --workers"),
        Need("consumer workers", consumer_workers, "", f"{consumers:.2f} cores, {at_once:.0f} jobs at once"),
        Need("cron managers", _LEAST, "", "one does the work"),
        Need("cores of PostgreSQL", math.ceil(server / _BUSY), "", f"{server:.2f} cores at {_BUSY:.0%}"),
        Need(
            "connections",
            open_at_most,
            "",
            f"{processes} x (pool {postgres.pool_size} + {OWN_CONNECTIONS})",
            most * 0.9,
        ),
        *(Need(f"storage: {name}", size / 1e9, "GB", why) for name, (size, why) in stored.items()),
        Need("storage in all", sum(size for size, _ in stored.values()) / 1e9, "GB", "with indexes, without yours"),
        Need("WAL", wal / 1e6, "MB/s", "as small as checkpoints are rare"),
        Need("WAL of a day", wal * day, "GB", "what backups keep"),
    ]
