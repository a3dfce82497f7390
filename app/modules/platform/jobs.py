"""Schedules and handlers of platform. Handlers are built in consumers, not in cron managers."""

from app.kernel.process import Process
from app.kernel.queue import Handler, Schedule, Task
from app.kernel.sentinel import NOTIFY
from app.modules.platform.domain import SEND_MESSAGE

HEARTBEAT = Task[None]("platform.heartbeat")
PRUNE = Task[None]("platform.prune")

SCHEDULES = [
    Schedule(HEARTBEAT, cron="* * * * *"),
    Schedule(PRUNE, cron="17 * * * *", overlap="skip"),
]


async def handlers(p: Process) -> list[Handler]:
    """Return what consumers run."""
    from app.modules.platform import wiring

    alerting = await p.use(wiring.alerting)
    return [
        Handler(HEARTBEAT, await p.use(wiring.record_heartbeat)),
        Handler(PRUNE, await p.use(wiring.prune)),
        Handler(NOTIFY, alerting.notify_errors, mode="tx"),
        Handler(SEND_MESSAGE, alerting.send_message),
    ]
