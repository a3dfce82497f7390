"""The event consumer: leases due jobs, runs their tasks, records how they ended.

A job is run at least once. While it runs its lease is renewed; every completion carries the lease's token, so a worker
that was frozen past its lease cannot complete what another has taken over.
"""

import asyncio
import inspect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from loguru import logger
from pydantic import TypeAdapter

from app.kernel.config import QueueSettings
from app.kernel.db import Database
from app.kernel.db.postgres import database
from app.kernel.errors import Unavailable
from app.kernel.identifiers import uuid7
from app.kernel.process import Process, Service, pause
from app.kernel.queue import Task

_LEASE = """
UPDATE kernel.jobs
SET lease_token = %(token)s, leased_until = now() + %(lease_s)s * interval '1 second', attempt = attempt + 1
WHERE id IN (
    SELECT id FROM kernel.jobs
    WHERE queue = ANY(%(queues)s) AND task = ANY(%(tasks)s) AND run_at <= now()
      AND (leased_until IS NULL OR leased_until < now())
    ORDER BY run_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
RETURNING id, task, payload, attempt, max_attempts
"""

_RENEW = """
UPDATE kernel.jobs SET leased_until = now() + %(lease_s)s * interval '1 second' WHERE lease_token = ANY(%(tokens)s)
"""

_FINISH = """
WITH gone AS (
    DELETE FROM kernel.jobs WHERE id = %(id)s AND lease_token = %(token)s
    RETURNING id, queue, task, payload, unique_key, attempt, created_at
)
INSERT INTO kernel.finished_jobs (id, queue, task, payload, unique_key, attempt, created_at, outcome, error)
SELECT gone.*, %(outcome)s, %(error)s FROM gone
"""

_RETRY = """
UPDATE kernel.jobs
SET run_at = now() + %(delay_s)s * interval '1 second', lease_token = NULL, leased_until = NULL
WHERE id = %(id)s AND lease_token = %(token)s
"""

_HAND_BACK = """
UPDATE kernel.jobs SET lease_token = NULL, leased_until = NULL, attempt = attempt - 1
WHERE id = ANY(%(ids)s) AND lease_token = ANY(%(tokens)s)
"""

_BACKOFF_S = 2.0
_BACKOFF_MOST_S = 300.0


@dataclass(frozen=True, slots=True)
class Job:
    """A leased job."""

    token: UUID
    id: UUID
    task: str
    payload: dict[str, Any]
    attempt: int
    max_attempts: int


class Consumer:
    """Runs jobs of some queues, at most so many at once."""

    def __init__(self, db: Database, tasks: Sequence[Task], settings: QueueSettings) -> None:
        self._db = db
        self._tasks = {task.name: task for task in tasks}
        self._payloads = {task.name: _payload_type(task) for task in tasks}
        self._settings = settings
        self._running: dict[asyncio.Task[None], Job] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Run jobs until asked to stop, then finish those at hand; when cancelled, hand them back."""
        renewed = asyncio.Event()
        renewer = asyncio.ensure_future(self._renew(renewed))
        try:
            while not stop.is_set():
                if await self._fetch() == 0:
                    await self._wait(stop)
            if self._running:
                await asyncio.wait(self._running)
        finally:
            renewed.set()
            await self._hand_back()
            await renewer

    async def _fetch(self) -> int:
        free = self._settings.concurrency - len(self._running)
        if free == 0:
            return 0
        token = uuid7()
        try:
            rows = await self._db.all(
                _LEASE,
                {
                    "token": token,
                    "lease_s": self._settings.lease,
                    "queues": list(self._settings.names),
                    "tasks": list(self._tasks),
                    "limit": free,
                },
            )
        except Unavailable as error:
            logger.warning("consumer: {}; trying again", error)
            return 0
        for row in rows:
            job = Job(token, *row)
            running = asyncio.ensure_future(self._run(job))
            self._running[running] = job
            running.add_done_callback(self._running.pop)
        return len(rows)

    async def _wait(self, stop: asyncio.Event) -> None:
        """Until a job may be due, a place has become free, or the stop."""
        if len(self._running) < self._settings.concurrency:
            await pause(stop, self._settings.poll_interval)
            return
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({*self._running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()

    async def _run(self, job: Job) -> None:
        with logger.contextualize(job_id=str(job.id), task=job.task, attempt=job.attempt):
            try:
                payload_type = self._payloads[job.task]
                given = () if payload_type is None else (payload_type.validate_python(job.payload),)
                await self._tasks[job.task].operation(*given)
            except Exception as error:  # noqa: BLE001 - whatever a handler raises is a failed attempt
                await self._failed(job, error)
            else:
                await self._finish(job, "done", None)

    async def _failed(self, job: Job, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        if job.attempt >= job.max_attempts:
            logger.opt(exception=error).error("job is dead after {} attempts: {}", job.attempt, reason)
            await self._finish(job, "dead", reason)
            return
        delay_s = min(_BACKOFF_S**job.attempt, _BACKOFF_MOST_S)
        logger.opt(exception=error).warning("attempt failed, next in {:.0f} s: {}", delay_s, reason)
        await self._record(_RETRY, {"id": job.id, "token": job.token, "delay_s": delay_s})

    async def _finish(self, job: Job, outcome: str, error: str | None) -> None:
        await self._record(_FINISH, {"id": job.id, "token": job.token, "outcome": outcome, "error": error})
        logger.info("job {}", outcome)

    async def _record(self, sql: Any, parameters: dict[str, Any]) -> None:
        """Write how a job ended; through an outage of the database for as long as the lease may still be ours."""
        deadline = asyncio.get_running_loop().time() + self._settings.lease
        while True:
            try:
                if await self._db.run(sql, parameters) == 0:
                    logger.warning("the lease was lost meanwhile; another worker has the job")
                return
            except Unavailable as error:
                if asyncio.get_running_loop().time() > deadline:
                    logger.error("could not record how the job ended, it will run again: {}", error)
                    return
                await asyncio.sleep(0.5)

    async def _renew(self, stop: asyncio.Event) -> None:
        while not await pause(stop, self._settings.lease / 3):
            if self._running:
                with suppress(Unavailable):
                    tokens = list({job.token for job in self._running.values()})
                    await self._db.run(_RENEW, {"tokens": tokens, "lease_s": self._settings.lease})

    async def _hand_back(self) -> None:
        left = dict(self._running)
        if not left:
            return
        for running in left:
            running.cancel()
        await asyncio.wait(left, timeout=1)
        logger.error("{} jobs were cut and handed back: {}", len(left), ", ".join(j.task for j in left.values()))
        with suppress(Unavailable):
            jobs = list(left.values())
            await self._db.run(_HAND_BACK, {"ids": [j.id for j in jobs], "tokens": list({j.token for j in jobs})})


def _payload_type(task: Task) -> TypeAdapter[Any] | None:
    parameters = list(inspect.signature(task.operation).parameters.values())
    return TypeAdapter(parameters[0].annotation) if parameters else None


async def consumer(p: Process, tasks: Sequence[Task]) -> Service:
    """Return the consumer as a service."""
    db = await p.use(database)
    return Service("consumer", Consumer(db, tasks, p.settings[QueueSettings]).run)
