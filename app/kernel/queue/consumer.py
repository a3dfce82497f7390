"""The event consumer: leases jobs in batches, runs them, completes them in batches.

A job is run at least once: what a worker leased and did not complete is leased to another one when the lease runs out.
"""

import asyncio
import os
import random
import socket
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from difflib import get_close_matches
from functools import partial
from typing import Any

from loguru import logger

from app.kernel.actions.compose import make
from app.kernel.concurrency import Deadlines
from app.kernel.config import QueueSettings
from app.kernel.db import Database
from app.kernel.db.postgres import database
from app.kernel.db.server import server
from app.kernel.errors import Unavailable
from app.kernel.process import Process, Service
from app.kernel.queue import Handler, NeverRetry, RetryAfter, Subscriber
from app.kernel.queue.fetching import QueueState
from app.kernel.queue.heartbeat import Heartbeat
from app.kernel.queue.leases import KILLED, Job, Leases
from app.kernel.queue.listener import Listener
from app.kernel.queue.queues import register_queues
from app.kernel.queue.runner import FromTheFuture, Runner, Unreadable
from app.kernel.queue.transport import EventTransport
from app.kernel.telemetry import logs, metrics
from app.kernel.telemetry.redact import redacted
from app.kernel.telemetry.traces import exemplar, resumed
from app.kernel.text import said, shown, storable

_FLUSHED_AT_ONCE = 500
_PREFETCH_S = 0.1
_PROMOTE_EVERY_S = 0.05
_SEEN_EVERY_S = 60.0
_MEASURED_EVERY_S = 15.0
_AGAIN_S = 1.0
_LONGEST_BACKOFF_S = 6 * 3600.0
_UNKNOWN_AGAIN_S = 10.0
_UNKNOWN_AT_MOST_S = 86400.0  # then no release will know it any more


class _LeaseLost(Exception):
    """The job is another worker's by now; rolls back what a `tx` operation has written."""


class Consumer:
    """Runs jobs of some queues, at most so many at once."""

    def __init__(
        self,
        db: Database,
        conninfo: str,
        handlers: Sequence[Handler | Subscriber],
        settings: QueueSettings,
        events: EventTransport,
        worker: str = "",
    ) -> None:
        self._db = db
        self._conninfo = conninfo
        self._runners = {
            (handler.name if isinstance(handler, Subscriber) else handler.task.name): Runner(
                handler.operation, handler.mode, handler
            )
            for handler in handlers
        }
        self.handled = sorted({h.queue if isinstance(h, Subscriber) else h.task.queue for h in handlers})
        self._subscribers = [h for h in handlers if isinstance(h, Subscriber)]
        self._events = events
        self._settings = settings
        self._concurrency = settings.concurrency
        self._leases = Leases(worker or f"{socket.gethostname()}:{os.getpid()}", settings.lease)
        self._queues = deque(QueueState(name) for name in dict.fromkeys(settings.names))
        self._held: dict[str, Job] = {}
        self._ready: deque[Job] = deque()
        self._running: dict[asyncio.Task[None], Job] = {}
        self._done: list[Job] = []
        self._flushing: list[Job] = []
        self._some_done = asyncio.Event()
        self._wake = asyncio.Event()
        self._deadlines: dict[float, Deadlines] = {}  # by the timeouts that tasks have
        self._rate = 0.0
        self._finished = 0
        self._measured_at = 0.0
        self._next_due = self._poll_at = 0.0

    async def register(self) -> None:
        """Store the subscriptions, so that events are kept for them from now on, and the queues. Safe to repeat."""
        await self._events.subscribe(self._db, self._subscribers)
        await register_queues(self._db, self.handled)

    async def run(self, stop: asyncio.Event) -> None:
        """Run jobs until asked to stop, then finish those at hand; when cancelled, hand them back."""
        heartbeat = Heartbeat(self._conninfo, self._leases.lease_s, self._held, self._running, self.cancel)
        listener = Listener(self._conninfo, self._told)
        async with self._beside(listener.run, self._complete, self._tend, lambda: self._on_stop(stop)):
            heartbeat.start()
            try:
                while not stop.is_set():
                    if not await self._fetch():
                        await self._wait()
                await self._hand_back(list(self._ready))
                while self._running or self._done or self._flushing:
                    self._wake.clear()
                    await self._wake.wait()
            finally:
                await self._cut()
                await heartbeat.stop()

    def unhandled(self) -> list[str]:
        """Return the queues that it works on although none of its handlers is for their jobs: mistyped names?"""
        return [queue.name for queue in self._queues if queue.name not in self.handled]

    def cancel(self, job_id: str) -> None:
        """Cancel a job that runs here."""
        for task, job in self._running.items():
            if job.id == job_id and job.started_at and not job.stopped_for:
                job.stopped_for = "cancelled"
                task.cancel()

    @asynccontextmanager
    async def _beside(self, *works: Any) -> AsyncGenerator[None]:
        """Run something beside the body. When one of them fails, so does the body."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work()) for work in works]
            yield
            for task in tasks:
                task.cancel()

    async def _on_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    def _told(self, said: str) -> None:
        """Hear of a queue with something to do, of a cancelled job, or that we could not hear for a while."""
        if said.startswith("c"):
            self.cancel(said[1:])
            return
        for queue in self._queues:
            if said in ("", "q" + queue.name):
                queue.may_have_more = True
                self._wake.set()

    # fetching

    def _room(self) -> int:
        """Return how many jobs to fetch: those that can start, and as many as will within a moment."""
        held = len(self._ready) + len(self._running)
        if len(self._done) + len(self._flushing) > 2 * self._concurrency:
            return 0  # completions do not get through
        prefetch = min(self._concurrency, int(self._rate * _PREFETCH_S))
        room = self._concurrency + prefetch - held
        return room if not self._ready or room >= self._concurrency // 2 else 0

    async def _fetch(self) -> bool:
        """Fetch from one queue after the other; return whether it is worth going on at once."""
        now = time.monotonic()
        self._measure(now)
        try:
            if now >= self._poll_at:
                self._look_everywhere()
                self._poll_at = now + self._settings.poll_interval
            if now >= self._next_due:
                await self._promote()
            for _ in range(len(self._queues)):
                queue = self._queues[0]
                self._queues.rotate()
                room = self._room()
                if room == 0 or not queue.due(now):
                    continue
                from_rank = queue.next_rank(now)
                started = time.monotonic()
                found = await self._leases.fetch(self._db, queue.name, room, from_rank, started)
                queue.fetched(found, from_rank, room, started)
                for job in found.jobs:
                    self._held[job.id] = job
                self._ready.extend(found.jobs)
                self._start()
                if found.jobs:
                    await asyncio.sleep(0)  # they begin before the next fetch is prepared
                if queue.may_have_more:
                    return True
        except Unavailable as error:
            logger.warning("consumer: {}; trying again", error)
            self._look_everywhere()
            await asyncio.sleep(min(_AGAIN_S, self._settings.poll_interval))
        return False

    async def _promote(self) -> None:
        promoted, next_s = await self._leases.promote(self._db)
        now = time.monotonic()
        poll_s = self._settings.poll_interval
        wait_s = poll_s if next_s is None else min(max(next_s, _PROMOTE_EVERY_S), poll_s)
        self._next_due = now + (_PROMOTE_EVERY_S if promoted else wait_s)
        if promoted:
            self._look_everywhere()

    def _look_everywhere(self) -> None:
        for queue in self._queues:
            queue.may_have_more = True

    def _measure(self, now: float) -> None:
        """Estimate how many jobs a second end here."""
        elapsed = now - self._measured_at
        if elapsed > 0.05:
            self._rate = 0.5 * self._rate + 0.5 * self._finished / elapsed
            self._finished, self._measured_at = 0, now

    async def _wait(self) -> None:
        """Until there may be something to fetch."""
        now = time.monotonic()
        timeout = min(self._next_due, self._poll_at) - now
        if self._room() > 0:
            timeout = min([timeout, *(queue.wait_s(now) for queue in self._queues)])
        if not self._wake.is_set():
            handle = asyncio.get_running_loop().call_later(max(timeout, 0.001), self._wake.set)
            await self._wake.wait()
            handle.cancel()
        self._wake.clear()

    # running

    def _start(self) -> None:
        free = min(self._concurrency - len(self._running), len(self._ready))
        for _ in range(free):
            job = self._ready.popleft()
            task = asyncio.ensure_future(self._work(job))
            self._running[task] = job
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        job = self._running.pop(task, None)
        self._some_ended()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.opt(exception=error).error("the worker itself failed: {}", said(error))
            if job is not None:
                self._release(job)  # another worker has it when its lease has run out

    def _some_ended(self) -> None:
        for queue in self._queues:
            queue.some_ended()
        self._wake.set()

    async def _work(self, job: Job) -> None:
        """Run a job, and then others that wait, in the same task."""
        task = asyncio.current_task()
        assert task is not None
        while True:
            await self._one(task, job)
            self._finished += 1
            if not self._ready:
                return
            job = self._running[task] = self._ready.popleft()
            if len(self._ready) == self._concurrency // 2:
                self._wake.set()

    async def _one(self, task: "asyncio.Task[None]", job: Job) -> None:
        runner = self._runners.get(job.task)
        operation = "" if runner is None else runner.operation_id
        logs.new_context(job_id=job.id, task=job.task, operation=operation, attempt=job.attempt + 1)
        if runner is None:
            await self._unknown(job)
            return
        job.started_at = time.monotonic()
        if self._lapsed(job):
            self._release(job)
            metrics.lease_lost(job.task)
            logger.warning("job {} of {}: not begun, its lease has run out", job.id, job.task)
            return
        overran = partial(self._overran, task, job)
        deadlines = self._deadlines.get(job.timeout_s)
        if deadlines is None:
            deadlines = self._deadlines[job.timeout_s] = Deadlines(job.timeout_s)
        deadlines.begin(overran)
        outcome, example = "failed", None
        try:
            with resumed(job.trace_context, job.task) as span:
                if span is not None:
                    span.set_attribute("job.id", job.id)
                    example = exemplar()
                outcome = await self._attempt(task, job, runner)
        finally:
            deadlines.end(overran)
            metrics.job_ended(job.task, outcome, time.monotonic() - job.started_at, example)

    async def _attempt(self, task: "asyncio.Task[None]", job: Job, runner: Runner) -> str:
        error: BaseException | None = None
        try:
            await self._operate(job, runner)
        except BaseException as raised:  # noqa: BLE001 - whatever an operation raises is a failed attempt
            error = raised
        if error is not None and job.stopped_for == "drain":
            raise error
        stopped_for, job.stopped_for = job.stopped_for, "ended"  # nothing is to cut how it is recorded
        if task.cancelling():
            await _forget_cancellations(task)
        if error is None:
            logs.ended("INFO", "job done")
            return "done"
        try:
            return await self._not_done(job, error, stopped_for)
        except Exception as unfit:  # noqa: BLE001 - the error has what its kind does not allow
            return await self._failed(job, RuntimeError(f"an error that cannot be told, because of {said(unfit)}"))

    async def _not_done(self, job: Job, error: BaseException, stopped_for: str) -> str:
        """Record how an attempt ended that raised; return its outcome."""
        match error:
            case _LeaseLost():
                self._refused(job)
                outcome = "lost"
            case FromTheFuture():
                await self._unknown(job)
                outcome = "unknown"
            case Unreadable():
                outcome = await self._dead(job, str(error))
            case NeverRetry():
                outcome = await self._dead(job, redacted(f"never to be retried: {storable(shown(error))}"))
            case _ if stopped_for == "cancelled":
                outcome = await self._cancelled(job)
            case _ if stopped_for == "timeout":
                late = TimeoutError(f"took longer than {job.timeout_s:g} s")
                late.__cause__ = None if isinstance(error, asyncio.CancelledError) else error
                outcome = await self._failed(job, late)
            case _:
                outcome = await self._failed(job, error)
        return outcome

    async def _operate(self, job: Job, runner: Runner) -> None:
        argument = runner.argument(job)
        if runner.mode == "at_least_once":
            await runner.operation(*argument)
            self._done.append(job)
            self._some_done.set()
            return
        async with self._db.begin() as tx:
            if self._lapsed(job):  # while it began
                raise _LeaseLost
            await runner.operation(tx, *argument)
            if await self._leases.finish(tx, [job]) == 0:
                raise _LeaseLost
        self._release(job)

    def _lapsed(self, job: Job) -> bool:
        """Whether the lease may have run out: we froze, or the database was away."""
        return time.monotonic() > job.renewed_at + self._leases.lease_s

    def _overran(self, task: "asyncio.Task[None]", job: Job) -> None:
        if self._running.get(task) is job and not job.stopped_for:
            job.stopped_for = "timeout"
            task.cancel()

    async def _cancelled(self, job: Job) -> str:
        if await self._record(job, lambda: self._leases.finish(self._db, [job], "cancelled")):
            logger.info("job cancelled")
        return "cancelled"

    async def _failed(self, job: Job, error: BaseException) -> str:
        reason = redacted(said(error))
        if isinstance(error, asyncio.CancelledError):
            reason = "CancelledError: what it waited for was cancelled elsewhere"
        attempt = job.attempt + 1
        if attempt >= job.max_attempts:
            return await self._dead(job, f"failed {attempt} times, at last with {reason}", reason, error)
        delay_s = min(attempt**4 * random.uniform(0.8, 1.2), _LONGEST_BACKOFF_S)  # noqa: S311 - jitter
        if isinstance(error, RetryAfter):
            delay_s = error.delay_s if error.delay_s is not None else delay_s
        elif isinstance(error, Unavailable):
            delay_s = max(delay_s, min(error.retry_after_s, _LONGEST_BACKOFF_S))
        if await self._record(job, lambda: self._leases.postpone(self._db, job, delay_s, reason)):
            logger.opt(exception=error).warning("attempt failed, next in {:.0f} s: {}", delay_s, reason)
        self._next_due = min(self._next_due, time.monotonic() + delay_s)
        return "failed"

    async def _dead(self, job: Job, reason: str, last: str | None = None, error: BaseException | None = None) -> str:
        if await self._record(job, lambda: self._leases.die(self._db, job, reason, last or reason)):
            logger.opt(exception=error).error("dead letter: {}", reason)
        return "dead"

    async def _unknown(self, job: Job) -> None:
        """Leave the job to a process that knows its task, or the version of its event; for a day, then it is dead."""
        age_s = time.time() - int(job.id[:8] + job.id[9:13], 16) / 1000  # as its UUIDv7 says
        if age_s > _UNKNOWN_AT_MOST_S:
            await self._dead(job, f"no release has known {job.task} for a day")
            return
        if await self._record(job, lambda: self._leases.postpone(self._db, job, _UNKNOWN_AGAIN_S, None)):
            logger.warning("job {} of {}: this release does not know it; left to another", job.id, job.task)

    async def _record(self, job: Job, write: Any) -> bool:
        """Write how a job ended, through an outage for as long as the lease may still be ours; whether it was ours."""
        deadline = time.monotonic() + self._leases.lease_s
        while True:
            try:
                ours = bool(await write())
            except Unavailable as error:
                if time.monotonic() > deadline:
                    logger.error("could not record how the job ended, it will run again: {}", error)
                    self._release(job)
                    return False
                await asyncio.sleep(0.5)
            else:
                self._release(job)
                if not ours:
                    self._refused(job)
                return ours

    def _release(self, job: Job) -> None:
        """Hold a job no longer, unless it was leased here anew meanwhile."""
        if self._held.get(job.id) is job:
            del self._held[job.id]

    def _refused(self, job: Job) -> None:
        self._release(job)
        metrics.lease_lost(job.task)
        logger.warning("job {} of {}: the lease was lost meanwhile; another worker has it", job.id, job.task)

    # completing

    async def _complete(self) -> None:
        """Write completions: at once when nothing else is being written, else together with what came meanwhile."""
        while True:
            await self._some_done.wait()
            self._some_done.clear()
            while self._done:
                self._flushing = self._done[:_FLUSHED_AT_ONCE]
                del self._done[:_FLUSHED_AT_ONCE]
                await self._flush(self._flushing)
                self._flushing = []
                self._some_ended()

    async def _flush(self, jobs: list[Job]) -> None:
        deadline = time.monotonic() + self._leases.lease_s
        while True:
            try:
                finished = await self._leases.finish(self._db, jobs)
                break
            except Unavailable as error:
                if time.monotonic() > deadline:
                    logger.error("{} finished jobs could not be recorded and will run again: {}", len(jobs), error)
                    finished = len(jobs)
                    break
                await asyncio.sleep(0.5)
        for job in jobs:
            self._release(job)
        if finished < len(jobs):
            metrics.lease_lost(jobs[0].task, len(jobs) - finished)
            logger.warning("{} leases were lost meanwhile; other workers have the jobs", len(jobs) - finished)

    # tending

    async def _tend(self) -> None:
        """Free what dead workers held; say that our subscriptions are wanted; measure the queues."""
        seen_at, measure_at = -_SEEN_EVERY_S, 0.0
        while True:
            again_s = max(0.05, self._leases.lease_s / 4)
            try:
                rescued, dead = await self._leases.rescue(self._db)
                if rescued:
                    logger.warning("{} jobs of workers that died or froze are free again", rescued)
                for job_id, task in dead:
                    logger.bind(job_id=job_id, task=task).error("dead letter: {}", KILLED)
                    metrics.job_ended(task, "dead", 0)  # nobody knows how long it took
                if time.monotonic() - seen_at > _SEEN_EVERY_S:
                    await self.register()
                    seen_at = time.monotonic()
                started = time.monotonic()
                if started > measure_at:
                    metrics.queues_measured(await self._leases.depth(self._db))
                    ended = time.monotonic()
                    measure_at = ended + max(_MEASURED_EVERY_S, 20 * (ended - started))
            except Unavailable as error:
                logger.warning("consumer: {}; trying again", error)
                again_s = min(_AGAIN_S, again_s)
            await asyncio.sleep(again_s)

    async def _hand_back(self, jobs: list[Job]) -> None:
        self._ready.clear()
        if jobs:
            with suppress(Unavailable):
                await self._leases.hand_back(self._db, jobs)
            for job in jobs:
                self._release(job)

    async def _cut(self) -> None:
        """Cancel what still runs, and hand back what was not completed."""
        running = dict(self._running)
        for task, job in running.items():
            job.stopped_for = "drain"
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=1)
            names = ", ".join(sorted({job.task for job in running.values()}))
            logger.error("{} jobs were cut and handed back: {}", len(running), names)
        finished = [*self._flushing, *self._done]
        if finished:
            with suppress(Unavailable):
                await self._leases.finish(self._db, finished)
        done = {id(job) for job in finished}
        await self._hand_back([job for job in list(self._held.values()) if id(job) not in done])


async def _forget_cancellations(task: "asyncio.Task[None]") -> None:
    """Take back what was asked of an operation that has ended: its cancellation is not to reach the next one."""
    while task.cancelling():
        task.uncancel()
    with suppress(asyncio.CancelledError):  # one that was asked for last, and that nobody has heard of yet
        await asyncio.sleep(0)


async def consumer(p: Process, handlers: Sequence[Handler | Subscriber]) -> Service:
    """Return the consumer as a service, its subscriptions registered."""
    db = await p.use(database)
    found = await p.use(server)
    worker = Consumer(db, found.conninfo(), handlers, p.settings[QueueSettings], await make(p, EventTransport))
    for queue in worker.unhandled():
        near = get_close_matches(queue, worker.handled, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; they use {', '.join(worker.handled)}"
        logger.warning("no handler of this release uses the queue {}{}", queue, hint)
    try:
        await worker.register()
    except Unavailable as error:  # it is tried again while running
        logger.warning("consumer: {}; registering its subscriptions later", error)
    return Service("consumer", worker.run)
