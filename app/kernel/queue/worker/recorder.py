"""Recording of attempts that did not succeed: retried, dead letter, cancelled, or left to another worker."""

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
from app.kernel.sentinel.capture import fingerprint_of
from app.kernel.telemetry import metrics
from app.kernel.telemetry.redact import redacted
from app.kernel.text import error_text, shown, storable

_LONGEST_BACKOFF_S = 6 * 3600.0
_UNKNOWN_AGAIN_S = 10.0
_UNKNOWN_AT_MOST_S = 86400.0  # then it becomes a dead letter


class LeaseLost(Exception):
    """The lease of a job has ended. Rolls back a `tx` operation."""


class NewerEvent(Exception):
    """A newer release published this event."""


class InvalidPayload(Exception):
    """The payload is invalid in this release; the message has no values."""


class Recorder:
    """Records attempts that did not succeed. Each method returns the outcome for metrics."""

    def __init__(self, db: Database, leases: Leases, jobs: InFlight) -> None:
        self._db = db
        self._leases = leases
        self._jobs = jobs

    async def not_done(self, job: Job, error: BaseException, stopped_for: str) -> str:
        """Record an attempt that raised or was stopped."""
        match error:
            case LeaseLost():
                self.lost(job)
                outcome = "lost"
            case NewerEvent():
                outcome = await self.unknown(job)
            case InvalidPayload():
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
        """Schedule the next attempt, or create a dead letter after the last one."""
        reason = redacted(error_text(error))
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
        """Leave a job with an unknown task or event version to another release; after a day it is a dead letter."""
        age_s = time.time() - int(job.id[:8] + job.id[9:13], 16) / 1000  # the time in its UUIDv7
        if age_s > _UNKNOWN_AT_MOST_S:
            await self._dead(job, f"no release has known {job.task} for a day")
        elif await self._write(job, lambda: self._leases.postpone(self._db, job, _UNKNOWN_AGAIN_S, None)):
            logger.warning("job {} of {}: this release does not know it; left to another", job.id, job.task)
        return "unknown"

    def lost(self, job: Job, what: str = "the lease was lost; another worker has it") -> None:
        """Remove a job whose lease was lost, and log it."""
        self._jobs.release(job)
        metrics.lease_lost(job.task)
        logger.warning("job {} of {}: {}", job.id, job.task, what)

    async def _cancelled(self, job: Job) -> str:
        if await self._write(job, lambda: self._leases.finish(self._db, [job], "cancelled")):
            logger.info("job cancelled")
        return "cancelled"

    async def _dead(self, job: Job, reason: str, last: str | None = None, error: BaseException | None = None) -> str:
        cause = None if error is None else fingerprint_of("job", error)
        if await self._write(job, lambda: self._leases.die(self._db, job, reason, last or reason, cause)):
            logger.opt(exception=error).error("dead letter: {}", reason)
        return "dead"

    async def _write(self, job: Job, write: Callable[[], Awaitable[int]]) -> bool:
        """Write an outcome; retry during an outage while the lease may be valid. Return whether it was valid."""
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
