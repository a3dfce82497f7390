"""Fetching of jobs: the queue, the number and the time."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from loguru import logger

from app.kernel.config import QueueSettings
from app.kernel.db import Database
from app.kernel.errors import Unavailable
from app.kernel.queue.worker import InFlight
from app.kernel.queue.worker.completer import Completer
from app.kernel.queue.worker.leases import ANY_RANK, Fetched, Leases

_DEAD_ROWS_S = 0.002  # less is noise
_REST_S = 10  # for each second that dead rows took
_PREFETCH_S = 0.1
_PROMOTE_EVERY_S = 0.05
_AGAIN_S = 1.0


class QueueState:
    """The state of a queue in this worker.

    While fetches from the start take longer than those from the last rank on, because of dead rows, which a long
    snapshot keeps, it fetches from the last rank on. It then fetches from the start, for jobs of lower ranks, such as
    the next one of a group, so rarely that dead rows take a tenth of the time.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.may_have_more = True
        self._from = ANY_RANK
        self._full_at = 0.0
        self._full_owed = False
        self._full_took_s = (0.0, 0.0)
        self._part_took_s = (0.0, 0.0)
        self._again_at = math.inf
        self._limited = False

    def due(self, now: float) -> bool:
        """Return whether to fetch."""
        return self.wait_s(now) <= 0

    def next_rank(self, now: float) -> int:
        """Return the rank to fetch from."""
        self.may_have_more = False  # unless a notification arrives during the fetch
        self._again_at = math.inf
        self._full_owed = now < self._full_at
        return self._from if self._full_owed else ANY_RANK

    def fetched(self, found: Fetched, from_rank: int, wanted: int, started: float) -> None:
        """Update the state after a fetch."""
        now = time.monotonic()
        filled = len(found.jobs) == wanted
        if from_rank == ANY_RANK:
            self._full_took_s = (self._full_took_s[1], now - started)
            # of two each: a single slow one may have another cause
            dead_rows_s = min(self._full_took_s) - max(self._part_took_s)
            self._part_took_s = (0.99 * self._part_took_s[0], 0.99 * self._part_took_s[1])  # forgotten in time
            self._full_at = now + (_REST_S * dead_rows_s if dead_rows_s > _DEAD_ROWS_S else 0.0)
        else:
            self._part_took_s = (self._part_took_s[1], now - started)
        self._limited = found.limited
        if filled or found.again_s == 0:
            self.may_have_more = True
        elif found.again_s is not None:
            self._again_at = now + found.again_s
        if found.jobs:
            self._from = found.jobs[-1].rank

    def some_ended(self) -> None:
        """Update the state after jobs have ended."""
        self.may_have_more = self.may_have_more or self._limited

    def wait_s(self, now: float) -> float:
        """Return the time until the next fetch without a notification."""
        if self.may_have_more:
            return 0.0
        return max(0.0, min(self._again_at, self._full_at if self._full_owed else math.inf) - now)


class Fetcher:
    """Leases jobs from the queues in turn, as many as can start soon."""

    def __init__(
        self,
        db: Database,
        leases: Leases,
        settings: QueueSettings,
        jobs: InFlight,
        completer: Completer,
        start: Callable[[], None],
    ) -> None:
        self._db = db
        self._leases = leases
        self._jobs = jobs
        self._completer = completer
        self._start = start
        self._poll_s = settings.poll_interval
        self.queues = deque(QueueState(name) for name in dict.fromkeys(settings.names))
        self.rate = 0.0
        self._measured_at = self._poll_at = 0.0

    async def fetch(self) -> bool:
        """Fetch from the queues in turn; return whether to fetch again at once."""
        now = time.monotonic()
        self._measure(now)
        if self._jobs.some_ended:
            self._jobs.some_ended = False
            for queue in self.queues:
                queue.some_ended()
        try:
            if now >= self._poll_at:
                self.look_everywhere()
                self._poll_at = now + self._poll_s
            if now >= self._jobs.next_due:
                await self._promote()
            for _ in range(len(self.queues)):
                queue = self.queues[0]
                self.queues.rotate()
                room = self._room()
                if room and queue.due(now):
                    await self._fetch_from(queue, room, now)
                    if queue.may_have_more:
                        return True
        except Unavailable as error:
            logger.warning("consumer: {}; trying again", error)
            self.look_everywhere()
            await asyncio.sleep(min(_AGAIN_S, self._poll_s))
        return False

    async def wait(self) -> None:
        """Wait until there may be jobs to fetch."""
        now = time.monotonic()
        timeout = min(self._jobs.next_due, self._poll_at) - now
        if self._room() > 0:
            timeout = min([timeout, *(queue.wait_s(now) for queue in self.queues)])
        wake = self._jobs.wake
        if not wake.is_set():
            handle = asyncio.get_running_loop().call_later(max(timeout, 0.001), wake.set)
            await wake.wait()
            handle.cancel()
        wake.clear()

    def look_everywhere(self) -> None:
        """Fetch from every queue next."""
        for queue in self.queues:
            queue.may_have_more = True

    def notified(self, queue_name: str) -> None:
        """Note that a queue has ready jobs."""
        for queue in self.queues:
            if queue.name == queue_name:
                queue.may_have_more = True
                self._jobs.wake.set()

    async def _fetch_from(self, queue: QueueState, room: int, now: float) -> None:
        from_rank = queue.next_rank(now)
        started = time.monotonic()
        found = await self._leases.fetch(self._db, queue.name, room, from_rank, started)
        queue.fetched(found, from_rank, room, started)
        for job in found.jobs:
            self._jobs.held[job.id] = job
        self._jobs.ready.extend(found.jobs)
        self._start()
        if found.jobs:
            await asyncio.sleep(0)  # the jobs begin before the next fetch

    def _room(self) -> int:
        """Return the number of jobs to fetch: those that can start now or soon."""
        jobs = self._jobs
        if self._completer.backlog > 2 * jobs.concurrency:
            return 0  # completions are delayed
        prefetch = min(jobs.concurrency, int(self.rate * _PREFETCH_S))
        room = jobs.concurrency + prefetch - len(jobs.ready) - len(jobs.running)
        return room if not jobs.ready or room >= jobs.concurrency // 2 else 0

    async def _promote(self) -> None:
        """Make due scheduled jobs ready."""
        promoted, next_s = await self._leases.promote(self._db)
        wait_s = self._poll_s if next_s is None else min(max(next_s, _PROMOTE_EVERY_S), self._poll_s)
        self._jobs.next_due = time.monotonic() + (_PROMOTE_EVERY_S if promoted else wait_s)
        if promoted:
            self.look_everywhere()

    def _measure(self, now: float) -> None:
        """Estimate the throughput in jobs per second."""
        elapsed = now - self._measured_at
        if elapsed > 0.05:
            self.rate = 0.5 * self.rate + 0.5 * self._jobs.ended_count / elapsed
            self._jobs.ended_count, self._measured_at = 0, now
