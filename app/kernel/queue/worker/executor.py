"""Execution of jobs, each with its timeout, trace and log context."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from loguru import logger
from pydantic import ValidationError

from app.kernel.concurrency import Deadlines
from app.kernel.db import Database
from app.kernel.queue import Handler, NeverRetry, Subscriber
from app.kernel.queue.codec import adapter, decode_event, problems, version_of
from app.kernel.queue.worker import InFlight, Job
from app.kernel.queue.worker.completer import Completer
from app.kernel.queue.worker.leases import Leases
from app.kernel.queue.worker.recorder import InvalidPayload, LeaseLost, NewerEvent, Recorder
from app.kernel.redis import patience
from app.kernel.telemetry import logs, metrics
from app.kernel.telemetry.traces import exemplar, resumed
from app.kernel.text import error_text, shown


class Executor:
    """Runs ready jobs, up to the concurrency of the worker."""

    def __init__(
        self,
        db: Database,
        leases: Leases,
        handlers: Mapping[str, Handler | Subscriber],
        jobs: InFlight,
        completer: Completer,
        recorder: Recorder,
    ) -> None:
        self._db = db
        self._leases = leases
        self._handlers = handlers
        self._jobs = jobs
        self._completer = completer
        self._recorder = recorder
        self._deadlines: dict[float, Deadlines] = {}  # by timeout
        self._is_starting = False

    def start(self) -> None:
        """Start ready jobs up to the concurrency.

        First one, and twice as many in each further round of the loop: a task whose job waits for nothing runs the next
        one, which saves a task for each.
        """
        if not self._is_starting:
            self._is_starting = True
            self._start_some(1)

    def _start_some(self, most: int) -> None:
        jobs = self._jobs
        count = min(most, jobs.concurrency - len(jobs.running), len(jobs.ready))
        for _ in range(count):
            job = jobs.ready.popleft()
            task = asyncio.ensure_future(self._work(job))
            jobs.running[task] = job
            task.add_done_callback(self._ended)
        self._is_starting = count > 0 and bool(jobs.ready)
        if self._is_starting:
            asyncio.get_running_loop().call_soon(self._start_some, 2 * most)

    def cancel(self, job_id: str) -> None:
        """Cancel a running job."""
        for task, job in self._jobs.running.items():
            if job.id == job_id and job.started_at and not job.stopped_for:
                job.stopped_for = "cancelled"
                task.cancel()

    async def cut(self) -> None:
        """Cancel running jobs without recording an attempt."""
        running = dict(self._jobs.running)
        for task, job in running.items():
            job.stopped_for = "drain"
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=1)
            names = ", ".join(sorted({job.task for job in running.values()}))
            logger.error("{} jobs were cut and handed back: {}", len(running), names)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        job = self._jobs.running.pop(task, None)
        self._jobs.note_end()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.opt(exception=error).error("the worker itself failed: {}", error_text(error))
            if job is not None:
                self._jobs.release(job)  # another worker leases it when its lease has expired

    async def _work(self, job: Job) -> None:
        """Run a job, and then other ready jobs, in the same task."""
        task = asyncio.current_task()
        assert task is not None
        jobs = self._jobs
        while True:
            await self._run(task, job)
            jobs.ended_count += 1
            if not jobs.ready:
                return
            job = jobs.running[task] = jobs.ready.popleft()
            if len(jobs.ready) == jobs.concurrency // 2:
                jobs.wake.set()

    async def _run(self, task: "asyncio.Task[None]", job: Job) -> None:
        handler = self._handlers.get(job.task)
        operation = "" if handler is None else getattr(handler.operation, "operation_id", "")
        logs.new_context(job_id=job.id, task=job.task, operation=operation, attempt=job.attempt + 1)
        patience.begin()
        if handler is None:
            await self._recorder.unknown(job)
            return
        job.started_at = time.monotonic()
        if self._lapsed(job):
            self._recorder.lost(job, "not begun, its lease has run out")
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
                outcome = await self._attempt(task, job, handler)
        finally:
            deadlines.end(overran)
            metrics.job_ended(job.task, outcome, time.monotonic() - job.started_at, example)

    async def _attempt(self, task: "asyncio.Task[None]", job: Job, handler: Handler | Subscriber) -> str:
        error: BaseException | None = None
        try:
            await self._operate(job, handler)
        except BaseException as raised:  # noqa: BLE001 - any exception of an operation is a failed attempt
            error = raised
        if error is not None and job.stopped_for == "drain":
            raise error
        stopped_for, job.stopped_for = job.stopped_for, "ended"  # from now on nothing cancels its recording
        if task.cancelling():
            await _forget_cancellations(task)
        if error is None:
            logs.ended("INFO", "job done")
            return "done"
        try:
            return await self._recorder.not_done(job, error, stopped_for)
        except Exception as unfit:  # noqa: BLE001 - the error has invalid attributes
            strange = RuntimeError(f"an error that cannot be shown, because of {error_text(unfit)}")
            return await self._recorder.failed(job, strange)

    async def _operate(self, job: Job, handler: Handler | Subscriber) -> None:
        argument = _argument(handler, job)
        if handler.mode == "at_least_once":
            await handler.operation(*argument)
            self._completer.complete(job)
            return
        async with self._db.begin() as tx:
            if self._lapsed(job):  # while the transaction began
                raise LeaseLost
            await handler.operation(tx, *argument)
            if await self._leases.finish(tx, [job]) == 0:
                raise LeaseLost
        await job.acknowledge()
        self._jobs.release(job)

    def _lapsed(self, job: Job) -> bool:
        """Return whether the lease may have expired, because the process froze or the database was unavailable."""
        return time.monotonic() > job.renewed_at + self._leases.lease_s

    def _overran(self, task: "asyncio.Task[None]", job: Job) -> None:
        if self._jobs.running.get(task) is job and not job.stopped_for:
            job.stopped_for = "timeout"
            task.cancel()


async def _forget_cancellations(task: "asyncio.Task[None]") -> None:
    """Clear the cancellation of an ended operation, so that it does not reach the next one."""
    while task.cancelling():
        task.uncancel()
    with suppress(asyncio.CancelledError):  # a cancellation that is not delivered yet
        await asyncio.sleep(0)


def _argument(handler: Handler | Subscriber, job: Job) -> tuple[Any, ...]:
    """Return the decoded payload. Raises InvalidPayload, NeverRetry, NewerEvent."""
    try:
        if isinstance(handler, Subscriber):
            return (_event(handler, job),)
        if handler.task.payload is None:
            return ()
        return (adapter(handler.task.payload).validate_json(job.payload or "null"),)
    except ValidationError as error:
        raise InvalidPayload(f"the payload does not fit: {problems(error)}") from None


def _event(subscriber: Subscriber, job: Job) -> object:
    version = job.event_version or 1
    if version > version_of(subscriber.event):
        raise NewerEvent
    try:
        return decode_event(subscriber.event, version, job.payload or "null")
    except ValidationError:
        raise
    except Exception as error:
        raise NeverRetry(f"the event of version {version} cannot be upgraded: {shown(error, repr)}") from error
