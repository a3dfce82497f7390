"""How much is there to do?"""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import Page
from app.kernel.queue.queues import ListedQueue, Queues


@operation("platform.list_queues", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListQueues:
    """List the queues, with how much is in them and for how long."""

    db: Database
    queues: Queues

    async def __call__(self) -> Page[ListedQueue]:
        """Return every queue, by name. Safe to repeat."""
        return Page(await self.queues.all(self.db))
