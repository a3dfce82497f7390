"""Rescue of jobs of dead workers. Also registers subscriptions and queues, and measures the queues."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from loguru import logger

from app.kernel.db import Database
from app.kernel.errors import Unavailable
from app.kernel.queue.worker.leases import KILLED, Leases
from app.kernel.telemetry import metrics

_REGISTER_EVERY_S = 60.0
_MEASURE_EVERY_S = 15.0
_AGAIN_S = 1.0


class Rescuer:
    """Maintains the queue several times per lease."""

    def __init__(self, db: Database, leases: Leases, register: Callable[[], Awaitable[None]]) -> None:
        self._db = db
        self._leases = leases
        self._register = register
        self._registered_at = -_REGISTER_EVERY_S
        self._measure_at = 0.0

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            again_s = max(0.05, self._leases.lease_s / 4)
            try:
                await self._rescue()
                if time.monotonic() - self._registered_at > _REGISTER_EVERY_S:
                    await self._register()
                    self._registered_at = time.monotonic()
                await self._measure()
            except Unavailable as error:
                logger.warning("consumer: {}; trying again", error)
                again_s = min(_AGAIN_S, again_s)
            await asyncio.sleep(again_s)

    async def _rescue(self) -> None:
        rescued, dead = await self._leases.rescue(self._db)
        if rescued:
            logger.warning("{} jobs of workers that died or froze are free again", rescued)
        for job_id, task in dead:
            logger.bind(job_id=job_id, task=task).error("dead letter: {}", KILLED)
            metrics.job_ended(task, "dead", 0)  # the duration is unknown

    async def _measure(self) -> None:
        started = time.monotonic()
        if started > self._measure_at:
            metrics.queues_measured(await self._leases.depth(self._db))
            ended = time.monotonic()
            self._measure_at = ended + max(_MEASURE_EVERY_S, 20 * (ended - started))
