"""Time series of the whole deployment: what processes count, and what the queue holds, by minute and by hour.

Each process reports cumulative counts with its heartbeat. Every minute a job adds what is new to `kernel.series`, and
notes in `kernel.counted` what it has added, in one transaction: however late or often it runs, everything counts once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any, Literal

from app.kernel.db import Queries, Transaction
from app.kernel.telemetry import metrics

Resolution = Literal["minute", "hour"]
Counts = Mapping[str, float]

_PROBES = frozenset({"/health", "/ready", "/metrics"})
_AT_MOST, _SLOWER = "requests_le_", "requests_slower"
_NAMES = [*(f"{_AT_MOST}{bound:g}" for bound in metrics.REQUEST_SECONDS), _SLOWER]
_DONE_IN = "done_in:"
_LOCK = (1802661741, 2)
_LOOK_BACK = 60
"""Number of buckets that a spike is compared with."""

_TURN = "SELECT pg_advisory_xact_lock(%s, %s)"
_ADD = """
    WITH delta AS (
        SELECT r.key, sum(r.value::numeric - coalesce((coalesce(n.counts, c.base) ->> r.key)::numeric, 0)) AS count
        FROM kernel.counters c LEFT JOIN kernel.counted n USING (process_id), jsonb_each_text(c.reported) r
        GROUP BY r.key
    ), noted AS (
        INSERT INTO kernel.counted (process_id, counts) SELECT process_id, reported FROM kernel.counters
        ON CONFLICT (process_id) DO UPDATE SET counts = excluded.counts WHERE counted.counts <> excluded.counts
    ), depth AS (
        SELECT jsonb_build_object(
            'scheduled', count(*) FILTER (WHERE state = 'scheduled'), 'ready', count(*) FILTER (WHERE state = 'ready'),
            'waiting', count(*) FILTER (WHERE state = 'waiting'), 'leased', count(*) FILTER (WHERE state = 'leased'),
            'oldest_ready_s',
                coalesce(round(extract(epoch FROM now() - min(run_at) FILTER (WHERE state = 'ready')), 1), 0),
            'dead', (SELECT count(*) FROM kernel.dead_letters)
        ) AS gauges FROM kernel.jobs
    ), before AS (
        SELECT max(measured_at) AS at FROM kernel.series WHERE resolution = 'minute'
    ), since AS (
        SELECT coalesce(greatest(
            before.at, (SELECT min(since) FROM kernel.counters WHERE seen_at > coalesce(before.at, '-infinity'))
        ), now() - interval '1 minute') AS at FROM before
    )
    INSERT INTO kernel.series AS s (resolution, at, measured_at, seconds, counts, gauges)
    SELECT resolution, date_trunc(resolution, now() - interval '30 seconds', 'UTC'), now(),
        greatest(extract(epoch FROM now() - since.at), 0.001),
        coalesce((SELECT jsonb_object_agg(key, count) FROM delta WHERE count > 0), '{}'), depth.gauges
    FROM (VALUES ('minute'), ('hour')) AS both_sizes (resolution), depth, since
    ON CONFLICT (resolution, at) DO UPDATE SET measured_at = excluded.measured_at,
        seconds = s.seconds + excluded.seconds, counts = kernel.sum_counts(s.counts, excluded.counts),
        gauges = kernel.max_gauges(s.gauges, excluded.gauges)
"""
_SEEN = """
    UPDATE kernel.rollouts SET last_seen_at = now() WHERE id IN (
        SELECT rollout_id FROM kernel.processes WHERE last_seen_at > now() - interval '1 minute'
    )
"""
_BETWEEN = """
    SELECT at, seconds, counts, gauges FROM kernel.series
    WHERE resolution = %(resolution)s AND at >= now() - %(since_s)s * interval '1 second' ORDER BY at
"""
_DONE = """
    SELECT substr(c.key, %(skip)s), sum(c.value::bigint) FILTER (WHERE s.at = newest.at)::bigint,
        sum(c.value::bigint)::bigint
    FROM kernel.series s CROSS JOIN jsonb_each_text(s.counts) c, (
        SELECT max(at) AS at FROM kernel.series WHERE resolution = 'minute' AND at > now() - interval '3 minutes'
    ) newest
    WHERE s.resolution = 'minute' AND s.at > now() - interval '1 hour' AND starts_with(c.key, %(prefix)s)
    GROUP BY 1
"""
# the first bucket of several in a row
_SPIKES = """
    SELECT at, errors::bigint, usual::float8 FROM (
        SELECT at, errors, usual,
            lag(errors >= %(least)s AND errors > usual * 5, 1, false) OVER (ORDER BY at) AS goes_on
        FROM (
            SELECT at, errors, coalesce(avg(errors) OVER (
                ORDER BY at ROWS BETWEEN %(look_back)s PRECEDING AND 1 PRECEDING
            ), 0) AS usual
            FROM (
                SELECT at, coalesce((counts ->> 'errors')::numeric, 0) AS errors FROM kernel.series
                WHERE resolution = %(resolution)s
            ) counted
        ) compared
    ) marked
    WHERE errors >= %(least)s AND errors > usual * 5 AND NOT goes_on
    ORDER BY at DESC LIMIT %(limit)s
"""
_LEAST_SPIKE: Mapping[Resolution, int] = {"minute": 10, "hour": 50}


queues: dict[str, str] = {}
"""The queues of the tasks that this process handles."""


def counts() -> dict[str, int]:
    """Return what this process has counted since it started, by name.

    Requests to probes are left out. `requests_failed` were answered 5xx, `requests_refused` 4xx. The others are by
    duration: `requests_le_0.1` took at most 0.1 s, and more than the bound below. `done_in:default` are the jobs of
    a queue that were done.
    """
    requests, attempts, errors = metrics.counted()
    found = dict.fromkeys(_NAMES, 0)
    found |= {"requests": 0, "requests_refused": 0, "requests_failed": 0, "jobs_done": 0, "jobs_failed": 0}
    for (_, route, status), by_bound in requests:
        if route in _PROBES:
            continue
        count = sum(by_bound)
        found["requests"] += count
        if status.startswith("4"):
            found["requests_refused"] += count
        elif status.startswith("5") and status != "505":  # 505 is the client's error
            found["requests_failed"] += count
        for name, more in zip(_NAMES, by_bound, strict=True):
            found[name] += more
    for (task, outcome), by_bound in attempts:
        if outcome != "cancelled":
            found["jobs_done" if outcome == "done" else "jobs_failed"] += sum(by_bound)
        if outcome == "done" and task in queues:
            name = _DONE_IN + queues[task]
            found[name] = found.get(name, 0) + sum(by_bound)
    found["errors"] = errors
    return {name: count for name, count in found.items() if count}


@dataclass(frozen=True, slots=True)
class Point:
    """What happened within a minute or an hour, or longer after a gap: `seconds` says for how long it was counted.

    `p99_s` is the duration that 99 of 100 requests did not exceed. Depths and `oldest_ready_s` are maxima.
    """

    at: datetime
    seconds: float
    requests: int
    requests_per_s: float
    requests_refused: int
    requests_failed: int
    p99_s: float | None
    jobs_done: int
    jobs_per_s: float
    jobs_failed: int
    errors: int
    scheduled: int
    ready: int
    waiting: int
    leased: int
    dead: int
    oldest_ready_s: float


@dataclass(frozen=True, slots=True)
class Spike:
    """A minute or an hour with many more captured errors than the buckets before it."""

    at: datetime
    resolution: Resolution
    errors: int
    usual: float


@dataclass(frozen=True, slots=True)
class Series:
    """The time series in `kernel.series`."""

    async def add(self, tx: Transaction) -> None:
        """Add what processes have reported since the last time, and what the queue holds. Safe to repeat."""
        await tx.run(_TURN, _LOCK)  # so that the next statement sees what another one has added
        await tx.run(_ADD)
        await tx.run(_SEEN)

    async def period(self, db: Queries, resolution: Resolution, since_s: float) -> tuple[list[Point], Point | None]:
        """Return the buckets that began within the last seconds, oldest first, and their sum; None without any."""
        rows = await db.all(_BETWEEN, {"resolution": resolution, "since_s": since_s})
        if not rows:
            return [], None
        total = _point(rows[0][0], sum(row[1] for row in rows), _merged(row[2] for row in rows), rows[-1][3])
        return [_point(*row) for row in rows], total

    async def done_by_queue(self, db: Queries) -> dict[str, tuple[int, int]]:
        """Return how many jobs of each queue were done within the last counted minute, and within an hour."""
        rows = await db.all(_DONE, {"prefix": _DONE_IN, "skip": len(_DONE_IN) + 1})
        return {queue: (minute or 0, hour) for queue, minute, hour in rows}

    async def spikes(self, db: Queries, limit: int) -> list[Spike]:
        """Return the latest spikes of errors: by minute as long as minutes are kept, by hour before."""
        found: list[Spike] = []
        for resolution, least in _LEAST_SPIKE.items():
            given = {"resolution": resolution, "least": least, "look_back": _LOOK_BACK, "limit": limit}
            rows = await db.all(_SPIKES, given)
            found += [Spike(at, resolution, errors, usual) for at, errors, usual in rows]
        return found


def _merged(several: Iterable[Counts]) -> Counts:
    total: dict[str, float] = {}
    for one in several:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total


def _point(at: datetime, seconds: float, counted: Counts, gauges: Counts) -> Point:
    number = {name: int(counted.get(name, 0)) for name in _COUNTED}
    depth = {name: int(gauges.get(name, 0)) for name in _GAUGES}
    oldest = float(gauges.get("oldest_ready_s", 0))
    rates = {"requests_per_s": number["requests"] / seconds, "jobs_per_s": number["jobs_done"] / seconds}
    known: dict[str, Any] = {**number, **depth, **rates}
    return Point(at, seconds, p99_s=quantile(counted, 0.99), oldest_ready_s=oldest, **known)


_COUNTED = ("requests", "requests_refused", "requests_failed", "jobs_done", "jobs_failed", "errors")
_GAUGES = ("scheduled", "ready", "waiting", "leased", "dead")


def quantile(counted: Counts, share: float) -> float | None:
    """Return the duration that a share of the requests did not exceed, interpolated; None without requests.

    It is at most the last bound.
    """
    bounds = [*metrics.REQUEST_SECONDS, metrics.REQUEST_SECONDS[-1]]
    by_bound = [counted.get(name, 0) for name in _NAMES]
    totals = list(accumulate(by_bound))
    if not totals[-1]:
        return None
    wanted = share * totals[-1]
    at = next(place for place, total in enumerate(totals) if total >= wanted)
    below = bounds[at - 1] if at else 0.0
    return below + (bounds[at] - below) * (wanted - (totals[at] - by_bound[at])) / by_bound[at]
