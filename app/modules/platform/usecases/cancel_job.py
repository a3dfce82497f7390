"""Cancel a job."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.kernel.queue.jobs import Jobs
from app.modules.platform.domain.queue import JobRef
from app.modules.platform.usecases.retry_job import JobChanged, refuse_ended


@operation("platform.cancel_job", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class CancelJob:
    """Cancel a job: at once when it does not run, otherwise its worker is asked to."""

    db: Database
    jobs: Jobs
    audit: Audit

    async def __call__(self, caller: Caller, job: JobRef) -> JobChanged:
        """Return what it is now. Raises JobNotFound, JobEnded. Safe to repeat while the job runs.

        A running job is still leased afterwards; it may end before its worker hears of it, and may take its time.
        """
        async with self.db.begin() as tx:
            state = await self.jobs.lock(tx, job.id)
            if state is None:
                await refuse_ended(tx, self.jobs, job.id)
            if state == "leased":
                asked_at = await self.jobs.ask_to_cancel(tx, job.id)
                changed = JobChanged(job.id, "leased", asked_at)
            else:
                await self.jobs.remove(tx, job.id)
                changed = JobChanged(job.id, "cancelled")
            await self.audit.record(tx, caller, "platform.cancel_job", target=job.id, was=state)
        return changed
