"""The worker, split as it works: fetch, execute, complete (or record a failure), rescue; and what these share.

A job is run at least once: what a worker leased and did not complete is leased to another one when the lease runs out.
"""

import asyncio
from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class Job:
    """A leased job, as the worker holds it."""

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
    """Why its attempt is to end: cancelled, timeout or drain; `ended` when it has."""


class InFlight:
    """The jobs that this worker holds, of which some wait for their start and some run; wakes the fetcher."""

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.held: dict[str, Job] = {}
        self.ready: deque[Job] = deque()
        self.running: dict[asyncio.Task[None], Job] = {}
        self.ended_count = 0
        self.some_ended = False
        self.next_due = 0.0
        """When to look for scheduled jobs that are due, by the monotonic clock."""
        self.wake = asyncio.Event()

    def release(self, job: Job) -> None:
        """Hold a job no longer, unless it was leased here anew meanwhile."""
        if self.held.get(job.id) is job:
            del self.held[job.id]

    def note_end(self) -> None:
        """Note that a job has ended or was completed: there may be more to fetch."""
        self.some_ended = True
        self.wake.set()
