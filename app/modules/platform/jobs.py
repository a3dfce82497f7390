"""Schedules and handlers of platform. Handlers are built in consumers, not in cron managers."""

from app.kernel.process import Process
from app.kernel.queue import Handler, Schedule, Task

HEARTBEAT = Task[None]("platform.heartbeat")

SCHEDULES = [Schedule(HEARTBEAT, cron="* * * * *")]


async def handlers(p: Process) -> list[Handler]:
    """Return what consumers run."""
    from app.modules.platform import wiring

    return [Handler(HEARTBEAT, await p.use(wiring.record_heartbeat))]
