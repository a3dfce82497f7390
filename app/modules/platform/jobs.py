"""Schedules and handlers of platform. Handlers are built in consumers, not in cron managers."""

from app.kernel.process import Process
from app.kernel.queue import Handler, Schedule, Task

HEARTBEAT = Task[None]("platform.heartbeat")
PRUNE = Task[None]("platform.prune")
WATCH_SNAPSHOTS = Task[None]("platform.watch_snapshots", max_attempts=1)

SCHEDULES = [
    Schedule(HEARTBEAT, cron="* * * * *"),
    Schedule(PRUNE, cron="17 * * * *", overlap="skip"),
    Schedule(WATCH_SNAPSHOTS, cron="*/5 * * * *", misfire="skip"),
]


async def handlers(p: Process) -> list[Handler]:
    """Return what consumers run."""
    from app.modules.platform import wiring

    upkeep = await p.use(wiring.upkeep)
    return [
        Handler(HEARTBEAT, await p.use(wiring.record_heartbeat)),
        Handler(PRUNE, upkeep.prune),
        Handler(WATCH_SNAPSHOTS, upkeep.watch_snapshots),
    ]
