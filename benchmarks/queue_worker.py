"""Our worker as a process: what `run-event-consumer` runs, with handlers that do nothing. Started by benchmarks.queue.

`python -m benchmarks.queue_worker COUNT [events | groups | groups-tx]`
"""

import asyncio
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import uvloop

from app.kernel.config import LoggerSettings, QueueSettings
from app.kernel.db import Transaction
from app.kernel.process import Process
from app.kernel.queue import Handler, Subscriber, Task
from app.kernel.queue.consumer import consumer
from app.kernel.queue.worker import executor
from app.kernel.services import Run, Service
from app.kernel.telemetry import logs, metrics
from app.processes import load_settings, new_process, operations, reporter, sentinel
from benchmarks.tally import Tally, say_ready

SUBSCRIBERS = 5


@dataclass(frozen=True)
class Sent:
    """When it was enqueued; 0 in a job that is only counted. A job of a group says which."""

    at: float = 0.0
    group: int = -1


@dataclass(frozen=True)
class Happened:
    event_type: ClassVar[str] = "bench.happened"
    number: int


NOTHING = Task("bench.nothing", Sent)


def blindfold() -> None:
    """Take all telemetry from the consumer: what is left is what it costs to run jobs."""
    nothing, within = (lambda *_, **__: None), nullcontext()
    logs.ended = logs.new_context = metrics.job_ended = executor.exemplar = nothing
    executor.resumed = lambda *_, **__: within  # type: ignore[assignment]


def main() -> None:
    if os.environ.get("BENCH_BLIND"):
        blindfold()
    tally = Tally(int(sys.argv[1]))

    async def nothing(payload: Sent) -> None:
        tally(payload.at)

    async def heard(_: Happened) -> None:
        tally()

    async def of_group(payload: Sent) -> None:
        print(payload.group, time.monotonic(), flush=True)

    async def of_group_tx(_: Transaction, payload: Sent) -> None:
        await of_group(payload)

    handlers: list[Handler | Subscriber] = [Handler(NOTHING, nothing)]
    if "events" in sys.argv:
        handlers = [Subscriber(f"bench.hear{number}", Happened, heard) for number in range(SUBSCRIBERS)]

    elif "groups" in sys.argv:
        handlers = [Handler(NOTHING, of_group)]
    elif "groups-tx" in sys.argv:
        handlers = [Handler(NOTHING, of_group_tx, mode="tx")]

    async def consuming(p: Process) -> Run:
        run = await consumer(p, handlers, p.settings[QueueSettings])
        say_ready()
        return run

    settings = load_settings({"operations.port": 0})
    logs.configure(settings[LoggerSettings], "run-event-consumer")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        process = new_process("run-event-consumer", settings)
        makers = {"operations": operations, "consumer": consuming, "reporter": reporter, "sentinel": sentinel}
        sys.exit(runner.run(process.run([Service(name, make) for name, make in makers.items()])))


if __name__ == "__main__":
    main()
