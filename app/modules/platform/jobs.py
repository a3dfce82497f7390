"""Schedules and tasks of platform. Tasks are built in consumers, not in cron managers."""

from app.kernel.process import Process
from app.kernel.queue import Schedule, Task

SCHEDULES = [Schedule("platform.heartbeat", cron="* * * * *")]


async def tasks(p: Process) -> list[Task]:
    """Return what consumers run."""
    from app.modules.platform import wiring

    return [Task("platform.heartbeat", await p.use(wiring.record_heartbeat))]
