"""Try a job again now."""

from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database, Transaction
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue.jobs import Jobs, JobState
from app.modules.platform.domain.queue import JobEnded, JobNotFound, JobRef, JobRunning, JobWaiting


@dataclass(frozen=True, slots=True)
class JobChanged:
    """What a job is now; one that is asked to cancel is still leased."""

    id: UUID
    state: JobState
    cancel_requested_at: datetime | None = None


@operation("platform.retry_job", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class RetryJob:
    """Let a scheduled job run now, such as one that waits for its next attempt."""

    db: Database
    jobs: Jobs
    audit: Audit

    async def __call__(self, caller: Caller, job: JobRef) -> JobChanged:
        """Return what it is now. Raises JobNotFound, JobEnded, JobRunning, JobWaiting. Safe to repeat."""
        async with self.db.begin() as tx:
            state = await self.jobs.lock(tx, job.id)
            if state is None:
                await refuse_ended(tx, self.jobs, job.id)
            if state == "leased":
                raise JobRunning(f"{job.id} is running")
            if state == "waiting":
                raise JobWaiting(f"{job.id} is due; it waits until others of its group or key are done")
            if state == "scheduled":
                await self.jobs.hasten(tx, job.id)
                await self.audit.record(tx, caller, "platform.retry_job", target=job.id)
        return JobChanged(job.id, "ready")


async def refuse_ended(tx: Transaction, jobs: Jobs, job_id: UUID) -> NoReturn:
    """Raise what fits a job that is not to be done: JobEnded, JobNotFound."""
    ended = await jobs.ended(tx, job_id)
    if ended == "dead":
        raise JobEnded(f"{job_id} is a dead letter; retry or purge that")
    if ended is not None:
        raise JobEnded(f"{job_id} is {ended}; jobs that ended stay as they are")
    raise JobNotFound(f"there is no job {job_id}")
