"""Schedules and handlers of auth. Handlers are built in consumers, not in cron managers."""

from app.kernel.process import Process
from app.kernel.queue import Handler, Schedule, Task

PRUNE = Task[None]("auth.prune")

SCHEDULES = [Schedule(PRUNE, cron="41 * * * *", overlap="skip")]


async def handlers(p: Process) -> list[Handler]:
    """Return what consumers run."""
    from app.modules.auth import wiring

    return [Handler(PRUNE, await p.use(wiring.prune))]
