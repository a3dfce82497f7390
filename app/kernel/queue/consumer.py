"""The event consumer: the worker of the handlers and subscribers of all modules."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from difflib import get_close_matches
from typing import Any

from loguru import logger

from app.kernel import series
from app.kernel.actions.compose import make
from app.kernel.config import NatsSettings, QueueSettings
from app.kernel.db import Database
from app.kernel.db.listener import Listener, listener
from app.kernel.db.postgres import database
from app.kernel.db.server import server
from app.kernel.errors import Unavailable
from app.kernel.process import Process
from app.kernel.queue import Handler, Subscriber
from app.kernel.queue.queues import register_queues
from app.kernel.queue.transport import EventTransport
from app.kernel.queue.transport.nats.connection import nats
from app.kernel.queue.transport.nats.intake import Intake
from app.kernel.queue.transport.nats.ledger import DeliveryLeases
from app.kernel.queue.transport.nats.stream import Stream
from app.kernel.queue.worker import InFlight, Job
from app.kernel.queue.worker.completer import Completer
from app.kernel.queue.worker.executor import Executor
from app.kernel.queue.worker.fetcher import Fetcher
from app.kernel.queue.worker.leases import Leases
from app.kernel.queue.worker.recorder import Recorder
from app.kernel.queue.worker.renewer import Renewer
from app.kernel.queue.worker.rescuer import Rescuer
from app.kernel.services import Run


class Consumer:
    """Composes and drains the parts of a worker."""

    def __init__(
        self,
        db: Database,
        conninfo: Callable[[], str],
        listener: Listener,
        handlers: Sequence[Handler | Subscriber],
        settings: QueueSettings,
        events: EventTransport,
        worker: str = "",
        stream: Stream | None = None,
    ) -> None:
        """With a stream, it also takes the events that are in NATS."""
        self._db = db
        self._conninfo = conninfo
        self._listener = listener
        self._events = events
        self._subscribers = [h for h in handlers if isinstance(h, Subscriber)]
        by_task = {h.name if isinstance(h, Subscriber) else h.task.name: h for h in handlers}
        series.queues |= {task: h.queue if isinstance(h, Subscriber) else h.task.queue for task, h in by_task.items()}
        self.handled = sorted({h.queue if isinstance(h, Subscriber) else h.task.queue for h in handlers})
        self._jobs = jobs = InFlight(settings.concurrency)
        leases_of = Leases if stream is None else DeliveryLeases
        self._leases = leases = leases_of(worker or f"{socket.gethostname()}:{os.getpid()}", settings.lease)
        self._completer = Completer(db, leases, jobs)
        self.executor = Executor(db, leases, by_task, jobs, self._completer, Recorder(db, leases, jobs))
        self.fetcher = Fetcher(db, leases, settings, jobs, self._completer, self.executor.start)
        self._rescuer = Rescuer(db, leases, self.register)
        self._intake = None
        if stream is not None:
            self._intake = Intake(db, stream, settings, self._subscribers, jobs, self.executor.start)

    @property
    def running(self) -> int:
        """The number of running jobs."""
        return len(self._jobs.running)

    async def register(self) -> None:
        """Register subscriptions and queues. Later events are delivered to the subscriptions. Safe to repeat."""
        await self._events.subscribe(self._db, self._subscribers)
        await register_queues(self._db, self.handled)

    async def run(self, stop: asyncio.Event) -> None:
        """Run jobs until `stop` is set, then finish running jobs. If cancelled, release them to other workers."""
        jobs = self._jobs
        renewer = Renewer(self._conninfo, self._leases.lease_s, jobs.held, jobs.running, self.executor.cancel)
        intake = [self._intake.run] if self._intake else []
        async with _beside(self._completer.run, self._rescuer.run, lambda: self._on_stop(stop), *intake):
            renewer.start()
            try:
                with self._listener.subscribed("kernel_jobs", self._notified, self._missed):
                    while not stop.is_set():
                        if not await self.fetcher.fetch():
                            await self.fetcher.wait()
                    if self._intake:
                        await self._intake.stop()
                    await self._hand_back(list(jobs.ready))
                    while jobs.running or self._completer.backlog:
                        jobs.wake.clear()
                        await jobs.wake.wait()
            finally:
                await self.executor.cut()
                await self._completer.flush_last()
                await self._hand_back(list(jobs.held.values()))
                if self._intake:
                    await self._intake.close()
                await renewer.stop()

    def unhandled(self) -> list[str]:
        """Return the configured queues without a handler, whose names may be mistyped."""
        return [queue.name for queue in self.fetcher.queues if queue.name not in self.handled]

    async def _on_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._jobs.wake.set()

    def _notified(self, payload: str) -> None:
        """Handle a notification: `c` and the id of a cancelled job, or `q` and the name of a queue with ready jobs."""
        if payload.startswith("c"):
            self.executor.cancel(payload[1:])
        else:
            self.fetcher.notified(payload[1:])

    def _missed(self) -> None:
        self.fetcher.look_everywhere()
        self._jobs.wake.set()

    async def _hand_back(self, jobs: list[Job]) -> None:
        self._jobs.ready.clear()
        if jobs:
            with suppress(Unavailable):
                await self._leases.hand_back(self._db, jobs)
            for job in jobs:
                self._jobs.release(job)


@asynccontextmanager
async def _beside(*works: Any) -> AsyncGenerator[None]:
    """Run tasks concurrently with the body. If one fails, the body is cancelled."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for work in works]
        yield
        for task in tasks:
            task.cancel()


async def consumer(p: Process, handlers: Sequence[Handler | Subscriber], settings: QueueSettings) -> Run:
    """Register the subscriptions; return the service of the consumer."""
    db = await p.use(database)
    found = await p.use(server)
    events = await make(p, EventTransport)
    stream, broker = None, p.settings[NatsSettings]
    if broker.url.get_secret_value() and any(isinstance(handler, Subscriber) for handler in handlers):
        stream = Stream(await p.use(nats), broker, settings.lease)
    worker = Consumer(db, found.conninfo, await p.use(listener), handlers, settings, events, stream=stream)
    for queue in worker.unhandled():
        near = get_close_matches(queue, worker.handled, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; they use {', '.join(worker.handled)}"
        logger.warning("no handler of this release uses the queue {}{}", queue, hint)
    try:
        await worker.register()
    except Unavailable as error:  # `run` tries again
        logger.warning("consumer: {}; registering its subscriptions later", error)
    p.in_flight["jobs"] = lambda: worker.running
    return worker.run
