"""Recording how an attempt ended that did not succeed: tried again, dead letter, cancelled, or left to another."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from loguru import logger

from app.kernel.db import Database
from app.kernel.errors import Unavailable
from app.kernel.queue import NeverRetry, RetryAfter
from app.kernel.queue.worker import InFlight, Job
from app.kernel.queue.worker.completer import RETRY_S
from app.kernel.queue.worker.leases import Leases
from app.kernel.telemetry import metrics
from app.kernel.telemetry.redact import redacted
from app.kernel.text import said, shown, storable

_LONGEST_BACKOFF_S = 6 * 3600.0
_UNKNOWN_AGAIN_S = 10.0
_UNKNOWN_AT_MOST_S = 86400.0  # then no release will know it any more


class LeaseLost(Exception):
    """The job is another worker's by now; rolls back what a `tx` operation has written."""


class FromTheFuture(Exception):
    """A newer release published this event."""


class Unreadable(Exception):
    """The payload does not fit what this release reads; the message says why, without the values."""


class Recorder:
    """Records attempts that did not succeed. Each method returns the outcome, as metrics name it."""

    def __init__(self, db: Database, leases: Leases, jobs: InFlight) -> None:
        self._db = db
        self._leases = leases
        self._jobs = jobs

    async def not_done(self, job: Job, error: BaseException, stopped_for: str) -> str:
        """Record an attempt that raised, and why it was stopped, if it was."""
        match error:
            case LeaseLost():
                self.lost(job)
                outcome = "lost"
            case FromTheFuture():
                outcome = await self.unknown(job)
            case Unreadable():
                outcome = await self._dead(job, str(error))
            case NeverRetry():
                outcome = await self._dead(job, redacted(f"never to be retried: {storable(shown(error))}"))
            case _ if stopped_for == "cancelled":
                outcome = await self._cancelled(job)
            case _ if stopped_for == "timeout":
                late = TimeoutError(f"took longer than {job.timeout_s:g} s")
                late.__cause__ = None if isinstance(error, asyncio.CancelledError) else error
                outcome = await self.failed(job, late)
            case _:
                outcome = await self.failed(job, error)
        return outcome

    async def failed(self, job: Job, error: BaseException) -> str:
        """Schedule the next attempt, or make a dead letter after the last one."""
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
        if await self._write(job, lambda: self._leases.postpone(self._db, job, delay_s, reason)):
            logger.opt(exception=error).warning("attempt failed, next in {:.0f} s: {}", delay_s, reason)
        self._jobs.next_due = min(self._jobs.next_due, time.monotonic() + delay_s)
        return "failed"

    async def unknown(self, job: Job) -> str:
        """Leave the job to a process that knows its task, or the version of its event; for a day, then it is dead."""
        age_s = time.time() - int(job.id[:8] + job.id[9:13], 16) / 1000  # as its UUIDv7 says
        if age_s > _UNKNOWN_AT_MOST_S:
            await self._dead(job, f"no release has known {job.task} for a day")
        elif await self._write(job, lambda: self._leases.postpone(self._db, job, _UNKNOWN_AGAIN_S, None)):
            logger.warning("job {} of {}: this release does not know it; left to another", job.id, job.task)
        return "unknown"

    def lost(self, job: Job, what: str = "the lease was lost meanwhile; another worker has it") -> None:
        """Hold a job no longer whose lease is not ours any more, and say so."""
        self._jobs.release(job)
        metrics.lease_lost(job.task)
        logger.warning("job {} of {}: {}", job.id, job.task, what)

    async def _cancelled(self, job: Job) -> str:
        if await self._write(job, lambda: self._leases.finish(self._db, [job], "cancelled")):
            logger.info("job cancelled")
        return "cancelled"

    async def _dead(self, job: Job, reason: str, last: str | None = None, error: BaseException | None = None) -> str:
        if await self._write(job, lambda: self._leases.die(self._db, job, reason, last or reason)):
            logger.opt(exception=error).error("dead letter: {}", reason)
        return "dead"

    async def _write(self, job: Job, write: Callable[[], Awaitable[int]]) -> bool:
        """Write how a job ended, through an outage for as long as the lease may still be ours; return if it was."""
        deadline = time.monotonic() + self._leases.lease_s
        while True:
            try:
                ours = bool(await write())
            except Unavailable as error:
                if time.monotonic() > deadline:
                    logger.error("could not record how the job ended, it will run again: {}", error)
                    self._jobs.release(job)
                    return False
                await asyncio.sleep(RETRY_S)
            else:
                self._jobs.release(job)
                if not ours:
                    self.lost(job)
                return ours
