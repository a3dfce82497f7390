"""Checks of the work: queues, schedules, dead letters, errors, processes."""

from collections.abc import AsyncIterator

from app.kernel.backup import QUEUE
from app.kernel.config import SentinelSettings
from app.kernel.doctor import Check, Finding, fail, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.product import NAME

_UNREPORTED_S = 10
_LATELY_S = 3600
_TITLE = 120


async def queues(d: Deployment) -> AsyncIterator[Finding]:
    """Report queues with jobs that are due for long: without consumer, paused, or too slow."""
    stuck = """
        SELECT j.queue, count(*), extract(epoch FROM now() - min(j.run_at))::float8,
            kernel.is_paused(q.paused_at, q.paused_until), coalesce(q.seen_at < now() - interval '3 minutes', true)
        FROM kernel.jobs j LEFT JOIN kernel.queues q ON q.name = j.queue
        WHERE j.state = 'ready'
        GROUP BY j.queue, q.paused_at, q.paused_until, q.seen_at
        HAVING greatest(
            min(j.run_at), CASE WHEN NOT kernel.is_paused(q.paused_at, q.paused_until) THEN q.paused_until END
        ) < now() - %s * interval '1 second'
        ORDER BY 1 LIMIT 20
    """
    for queue, count, since_s, is_paused, is_unseen in await d.all(stuck, (d[SentinelSettings].stuck_queue,)):
        problem = f"{count} jobs of the queue {queue} are due, the oldest for {since_s:.0f} s"
        if is_paused:
            yield warn(f"{problem}: it is paused", f"{NAME} queues resume {queue}")
        elif is_unseen:
            start = "run-backup-agent" if queue == QUEUE else f"run-event-consumer --queue {queue}"
            yield fail(f"{problem}: no consumer works on it", f"{NAME} {start}")
        else:
            yield warn(
                f"{problem}: too few consumers, or jobs that hang", f"{NAME} jobs list --queue {queue} --state leased"
            )


async def schedules(d: Deployment) -> AsyncIterator[Finding]:
    """Report schedules that are due and have not fired."""
    late = """
        SELECT name, extract(epoch FROM now() - next_fire_at)::float8
        FROM kernel.schedules
        WHERE NOT kernel.is_paused(paused_at, paused_until)
          AND greatest(next_fire_at, paused_until) < now() - %s * interval '1 second'
        ORDER BY next_fire_at LIMIT 20
    """
    found = await d.all(late, (d[SentinelSettings].late_schedule,))
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        problem = f"the schedule {found[0][0]} has been due for {found[0][1]:.0f} s{more}: no cron manager runs"
        yield fail(problem, f"{NAME} run-cron-manager")


async def dead_letters(d: Deployment) -> AsyncIterator[Finding]:
    """Report tasks whose jobs were given up lately."""
    lately = """
        SELECT task, count(*) FROM kernel.dead_letters WHERE died_at > now() - %s * interval '1 second'
        GROUP BY task ORDER BY 2 DESC LIMIT 20
    """
    for task, count in await d.all(lately, (_LATELY_S,)):
        problem = f"{count} jobs of {task} were given up within the last hour"
        yield warn(problem, f"{NAME} dead-letters list --task {task}")


async def processes(d: Deployment) -> AsyncIterator[Finding]:
    """Report processes that stopped reporting without saying that they stop."""
    silent = """
        SELECT name, host, pid, extract(epoch FROM now() - last_seen_at)::float8 FROM kernel.processes
        WHERE last_seen_at < now() - %s * interval '1 second' ORDER BY last_seen_at DESC LIMIT 20
    """
    for name, host, pid, since_s in await d.all(silent, (_UNREPORTED_S,)):
        problem = f"{name} on {host} (pid {pid}) has not reported for {since_s:.0f} s: killed, frozen or cut off"
        yield warn(problem, f"{NAME} {name}")


async def errors(d: Deployment) -> AsyncIterator[Finding]:
    """Report groups of errors that are open and were seen lately."""
    lately = """
        SELECT count(*), (array_agg(id ORDER BY last_seen_at DESC))[1], (array_agg(title ORDER BY last_seen_at DESC))[1]
        FROM kernel.errors
        WHERE last_seen_at > now() - %s * interval '1 second'
          AND (state IN ('open', 'regressed') OR state = 'muted' AND muted_until < now())
    """
    count, latest, title = await d.one(lately, (_LATELY_S,))
    if count:
        groups = "1 group of errors was" if count == 1 else f"{count} groups of errors were"
        short = title if len(title) <= _TITLE else f"{title[:_TITLE]}..."
        yield warn(f"{groups} seen within the last hour, the latest: {short}", f"{NAME} errors show {latest}")


CHECKS = (
    Check("queues", "work", "Consumers keep up with every queue.", queues, quick=True, runbook="QueueDelayed"),
    Check("schedules", "work", "Schedules fire in time.", schedules, quick=True, runbook="ScheduleLate"),
    Check("dead-letters", "work", "No job was given up lately.", dead_letters, quick=True, runbook="DeadLetters"),
    Check("errors", "work", "No errors are open that were seen lately.", errors, quick=True, runbook="ErrorsCaptured"),
    Check("processes", "work", "All processes report.", processes, quick=True, runbook="ProcessDown"),
)
