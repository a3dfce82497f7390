"""Batched completion of jobs. After river's job completer."""

import asyncio
import time
from contextlib import suppress

from loguru import logger

from app.kernel.db import Database
from app.kernel.errors import Unavailable
from app.kernel.queue.worker import InFlight, Job
from app.kernel.queue.worker.leases import Leases
from app.kernel.telemetry import metrics

_BATCH = 500
RETRY_S = 0.5


class Completer:
    """Writes completions: at once if no write is in progress, else in batches."""

    def __init__(self, db: Database, leases: Leases, jobs: InFlight) -> None:
        self._db = db
        self._leases = leases
        self._jobs = jobs
        self._done: list[Job] = []
        self._flushing: list[Job] = []
        self._some_done = asyncio.Event()

    @property
    def backlog(self) -> int:
        """The number of unwritten completions."""
        return len(self._done) + len(self._flushing)

    def complete(self, job: Job) -> None:
        """Schedule the completion of a job."""
        self._done.append(job)
        self._some_done.set()

    async def run(self) -> None:
        """Write completions until cancelled."""
        while True:
            await self._some_done.wait()
            self._some_done.clear()
            while self._done:
                self._flushing = self._done[:_BATCH]
                del self._done[:_BATCH]
                await self._flush(self._flushing)
                self._flushing = []
                self._jobs.note_end()

    async def flush_last(self) -> None:
        """Try once to write the remaining completions, at the end of the worker."""
        if last := [*self._flushing, *self._done]:
            with suppress(Unavailable):
                await self._leases.finish(self._db, last)
            for job in last:
                self._jobs.release(job)

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
                await asyncio.sleep(RETRY_S)
        for job in jobs:
            self._jobs.release(job)
        if finished < len(jobs):
            metrics.lease_lost(jobs[0].task, len(jobs) - finished)
            logger.warning("{} leases were lost; other workers have the jobs", len(jobs) - finished)
