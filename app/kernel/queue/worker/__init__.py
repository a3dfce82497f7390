"""The worker: fetcher, executor, completer, recorder of failures, and rescuer; and their shared state.

A job runs at least once: when a lease expires before its job is completed, another worker leases the job.
"""

import asyncio
from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class Job:
    """A job that the worker has leased."""

    id: str
    task: str
    payload: str | None
    attempt: int
    max_attempts: int
    timeout_s: float
    event_id: str | None
    event_version: int | None
    trace_context: str | None
    rank: int
    token: str
    renewed_at: float
    started_at: float = 0.0
    stopped_for: str = ""
    """Why the attempt is stopped: cancelled, timeout or drain; `ended` after its end."""

    async def acknowledge(self) -> None:
        """Acknowledge, after the commit, what the database does not know."""

    def released(self) -> None:
        """Note that this worker is done with it."""


class InFlight:
    """The leased jobs of this worker, ready or running; wakes the fetcher."""

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.held: dict[str, Job] = {}
        self.ready: deque[Job] = deque()
        self.running: dict[asyncio.Task[None], Job] = {}
        self.ended_count = 0
        self.some_ended = False
        self.next_due = 0.0
        """When to promote due scheduled jobs, by the monotonic clock."""
        self.wake = asyncio.Event()

    def release(self, job: Job) -> None:
        """Remove a job, unless this worker has leased it again."""
        if self.held.get(job.id) is job:
            del self.held[job.id]
        job.released()

    def note_end(self) -> None:
        """Note that a job has ended, so that more jobs may be fetched."""
        self.some_ended = True
        self.wake.set()
