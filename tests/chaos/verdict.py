"""The verdict: what was enqueued, what was done, and by whom, must add up."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Protocol

from tests.chaos.deployment import CONCURRENCY, CONSUMER, LEASE_S, Deployment, Incident, Run
from tests.chaos.load import Load
from tests.chaos.module.jobs import GROUP, LIMIT, LIMITED, NARROW, PLAIN, SCHEDULE_COUNT, TICK, TX

NARROW_LIMIT = 3
AT_LEAST_ONCE = (PLAIN.name, LIMITED.name, NARROW.name, "chaos.told")
EXACTLY_ONCE = (TX.name, GROUP.name, "chaos.told_in_order")
_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits(3): the database was away while the process started
_UNWRITTEN_S = 1.0  # the longest time from the end of a handler until its completion is stored


class Rows(Protocol):
    """A database to count in."""

    def all(self, sql: str, *parameters: object) -> list[tuple]: ...


@dataclass
class Verdict:
    """What was checked; `notes` are numbers that nothing is claimed of."""

    checks: list[tuple[str, str, bool]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)

    def check(self, what: str, wrong: Sequence[object] | int, of: object = "") -> None:
        """Note that something must have happened never, of so many."""
        count = wrong if isinstance(wrong, int) else len(wrong)
        examples = f": {list(wrong)[:5]}" if count and not isinstance(wrong, int) else ""
        self.checks.append((what, f"{count}{f' of {of}' if of != '' else ''}{examples}", count == 0))

    def at_most(self, what: str, found: int, most: int) -> None:
        """Note that something must not have happened more often."""
        self.checks.append((what, f"{found}, allowed {most}", found <= most))

    def note(self, what: str, found: object) -> None:
        self.notes.append((what, str(found)))

    @property
    def holds(self) -> bool:
        return all(ok for _, _, ok in self.checks)

    def table(self) -> str:
        lines = [f"{'ok  ' if ok else 'FAIL'}  {what:<72} {found}" for what, found, ok in self.checks]
        return "\n".join([*lines, *(f"      {what:<72} {found}" for what, found in self.notes)])


def judge(deployment: Deployment, load: Load) -> Verdict:
    """Count. The deployment has stopped, and had time to finish before."""
    verdict = Verdict()
    runs = deployment.runs()
    count(verdict, deployment.database, load)
    limits(verdict, runs, deployment.incidents)
    reruns(verdict, runs, deployment)
    _refusals(verdict, deployment)
    _ends(verdict, deployment)
    return verdict


def count(verdict: Verdict, database: Rows, load: Load) -> None:
    """Compare what is in the database with what was enqueued."""
    _effects(verdict, database, load)
    _remains(verdict, database)
    _ticks(verdict, database)
    order(verdict, database)


def _effects(verdict: Verdict, database: Rows, load: Load) -> None:
    for kind in (*AT_LEAST_ONCE, *EXACTLY_ONCE):
        rows = database.all("SELECT key, number FROM chaos.effects WHERE kind = %s", kind)
        effects = Counter((key, number) for key, number in rows)
        confirmed, maybe = load.confirmed[kind], load.maybe[kind]
        verdict.check(f"{kind}: confirmed, but never done", sorted(confirmed - effects.keys()), len(confirmed))
        verdict.check(f"{kind}: done, but never enqueued", sorted(effects.keys() - confirmed - maybe), len(effects))
        twice = [job for job, count in effects.items() if count > 1]
        if kind in EXACTLY_ONCE:
            verdict.check(f"{kind}: done more than once", twice, len(effects))
        else:
            verdict.note(f"{kind}: effects more than one of a job", rows and len(rows) - len(effects))
    verdict.note("enqueued: confirmed", sum(map(len, load.confirmed.values())))
    verdict.note("enqueued: commit not answered", sum(map(len, load.maybe.values())))
    verdict.note("enqueued: refused during outages", load.refused)


def _remains(verdict: Verdict, database: Rows) -> None:
    left = database.all("SELECT task, state, attempt, rescues FROM kernel.jobs")
    verdict.check("jobs left in the queue", left)
    verdict.check("events left in the outbox", database.all("SELECT type, event_id FROM kernel.event_outbox"))
    # this one says that it is not to be tried again
    dead = database.all("SELECT task, reason FROM kernel.dead_letters WHERE task <> 'platform.watch_snapshots'")
    verdict.check("dead letters", dead)
    ((total, distinct),) = database.all("SELECT count(*), count(DISTINCT id) FROM kernel.finished_jobs")
    verdict.check("jobs finished more than once", total - distinct, total)


def _ticks(verdict: Verdict, database: Rows) -> None:
    """A tick is stored in the unique key of its job: name@time."""
    rows = database.all(
        """
        SELECT schedule, array_agg(split_part(unique_key, '@', 2)::timestamptz ORDER BY unique_key)
        FROM kernel.finished_jobs WHERE task = %s AND outcome = 'done' GROUP BY schedule
        """,
        TICK.name,
    )
    ticks = dict(rows)
    second = timedelta(seconds=1)
    doubled = [name for name, found in ticks.items() if len(set(found)) != len(found)]
    gaps = [
        (name, str(earlier), str(later))
        for name, found in ticks.items()
        for earlier, later in pairwise(sorted(set(found)))
        if later - earlier != second
    ]
    kept = {
        name: rest
        for name, *rest in database.all(
            "SELECT name, next_fire_at, last_fire_at, fired_count, skipped_count FROM kernel.schedules WHERE task = %s",
            TICK.name,
        )
    }
    unlike = [
        name for name, found in ticks.items() if kept.get(name) != [max(found) + second, max(found), len(found), 0]
    ]
    total = sum(map(len, ticks.values()))
    # an effect and the end of its job are of one transaction
    done = Counter(database.all("SELECT xmin::text FROM kernel.finished_jobs WHERE task = %s", TICK.name))
    effects = Counter(database.all("SELECT xmin::text FROM chaos.effects WHERE kind = %s", TICK.name))
    verdict.check("schedules without ticks", SCHEDULE_COUNT - len(ticks), SCHEDULE_COUNT)
    verdict.check("ticks missing between a schedule's first and last", gaps, total)
    verdict.check("schedules with a tick that came twice", doubled, len(ticks))
    verdict.check("schedules whose row differs from their ticks", unlike, len(ticks))
    verdict.check(
        "ticks whose job was not done exactly once", (done - effects).total() + (effects - done).total(), total
    )


def order(verdict: Verdict, database: Rows) -> None:
    """Each `tx` handler stored the newest effect of its key that it saw when it began: the one before, committed."""
    for kind in (GROUP.name, "chaos.told_in_order"):
        rows = database.all(
            """
            SELECT key, number, before, lag(number) OVER (PARTITION BY key ORDER BY number) AS wanted
            FROM chaos.effects WHERE kind = %s
            """,
            kind,
        )
        verdict.check(f"{kind}: begun before the one before was done", [r for r in rows if r[2] != r[3]], len(rows))


def limits(verdict: Verdict, runs: Sequence[Run], incidents: Sequence[Incident]) -> None:
    """Look at how many ran at once, by what their workers wrote down."""
    leased = Leased(incidents)
    for kind, most, by in ((LIMITED.name, LIMIT, "key"), (NARROW.name, NARROW_LIMIT, ""), (GROUP.name, 1, "key")):
        found = most_at_once(
            [run for run in runs if run.kind == kind], leased.until, lambda r, by=by: r.key if by else ""
        )
        verdict.at_most(f"{kind}: at once under unexpired leases, of one {by or 'queue'}", found, most)


class Leased:
    """Until when a run certainly had its lease.

    A worker that is killed has no lease to lose. One that is frozen, or has no database, cannot renew: it renews when a
    third of the lease has passed, so half a lease is certain; after that another worker may have the job.
    """

    def __init__(self, incidents: Sequence[Incident]) -> None:
        self._of: dict[int, list[Incident]] = defaultdict(list)
        for incident in incidents:
            if incident.pid is not None:
                self._of[incident.pid].append(incident)
        self._outages = [incident for incident in incidents if incident.cause == "outage"]

    def until(self, run: Run) -> float:
        """Return the moment on the monotonic clock."""
        end = run.ended if run.ended is not None else float("inf")
        for incident in (*self._of[run.pid], *self._outages):
            if not run.began <= incident.ended or not incident.began <= end:
                continue
            if incident.cause == "kill":
                end = min(end, incident.ended)
            else:
                end = min(end, max(run.began, incident.began) + LEASE_S / 2)
        return end


def most_at_once(runs: Iterable[Run], until: Callable[[Run], float], by: Callable[[Run], str]) -> int:
    """Return how many ran at the same time, of the same key, at most."""
    changes: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for run in runs:
        changes[by(run)] += [(run.began, 1), (max(run.began, until(run)), -1)]
    most = 0
    for of_key in changes.values():
        now = 0
        for _, change in sorted(of_key):
            now += change
            most = max(most, now)
    return most


def reruns(verdict: Verdict, runs: Sequence[Run], deployment: Deployment) -> None:
    """A job whose handler had not failed ran again: something happened to the worker before it could say so."""
    by_job: dict[tuple[str, str, int], list[Run]] = defaultdict(list)
    for run in runs:
        if run.kind in AT_LEAST_ONCE:
            by_job[run.kind, run.key, run.number].append(run)
    incidents = sorted(deployment.incidents, key=lambda incident: incident.began)
    starts = [incident.began for incident in incidents]
    unexplained: list[tuple[Run, Run]] = []
    blamed: Counter[Incident] = Counter()
    total = 0
    for of_job in by_job.values():
        for run, again in pairwise(of_job):
            if run.ended is not None and not run.effective:
                continue  # it failed, and was tried again
            total += 1
            until = again.began if run.ended is None else min(again.began, run.ended + _UNWRITTEN_S)
            causes = [
                incident
                for incident in incidents[: bisect_right(starts, until)]
                if incident.ended >= run.began and incident.pid in (None, run.pid)
            ]
            if causes:
                blamed[causes[-1]] += 1
            else:
                unexplained.append((run, again))
    verdict.check("at least once: run again though nothing had happened", unexplained, len(by_job))
    for cause, workers in (("kill", 1), ("freeze", 1), ("outage", deployment.consumers)):
        worst = max((count for incident, count in blamed.items() if incident.cause == cause), default=0)
        verdict.at_most(f"at least once: run again after one {cause}, at most", worst, 2 * CONCURRENCY * workers)
        verdict.note(f"at least once: run again after {cause}s", sum(n for i, n in blamed.items() if i.cause == cause))
    verdict.note("at least once: run again, of all jobs", f"{total} of {len(by_job)}")


def _refusals(verdict: Verdict, deployment: Deployment) -> None:
    frozen = {i.pid for i in deployment.incidents if i.cause == "freeze" and i.detail == CONSUMER}
    refused = {
        pid
        for pid, message in deployment.messages()
        if "was lost; another worker" in message or "were lost; other workers" in message
    }
    verdict.check("frozen workers whose late completions were not refused", sorted(frozen - refused), len(frozen))
    verdict.note("other workers that had a completion refused", len(refused - frozen))


def _ends(verdict: Verdict, deployment: Deployment) -> None:
    outages = [incident for incident in deployment.incidents if incident.cause == "outage"]
    gave_up = [
        end
        for end in deployment.ended_early
        if end.status == _UNAVAILABLE and any(o.began <= end.ended and end.began <= o.ended for o in outages)
    ]
    verdict.check(
        "processes that ended by themselves, but for starting in an outage",
        [end for end in deployment.ended_early if end not in gave_up],
    )
    verdict.note("processes that gave up starting in an outage (69)", len(gave_up))
    bad = [end for end in deployment.ended if end.status != 0]
    verdict.check("processes that did not end with 0 after SIGTERM", bad, len(deployment.ended))
    counts = Counter(f"{i.cause} {i.detail}" for i in deployment.incidents)
    for what, count in sorted(counts.items()):
        verdict.note(what, count)
