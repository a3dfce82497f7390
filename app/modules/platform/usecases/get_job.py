"""What is known of a job?"""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.queue.jobs import JobDetails, Jobs
from app.modules.platform.domain.queue import JobNotFound, JobRef


@operation("platform.get_job", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class GetJob:
    """See everything about a job: its payload, its errors, who runs it."""

    db: Database
    jobs: Jobs

    async def __call__(self, job: JobRef) -> JobDetails:
        """Return the job. Raises JobNotFound. Safe to repeat."""
        found = await self.jobs.get(self.db, job.id)
        if found is None:
            if await self.jobs.ended(self.db, job.id) == "dead":
                raise JobNotFound(f"{job.id} is a dead letter; look there")
            raise JobNotFound(f"there is no job {job.id}")
        return found
