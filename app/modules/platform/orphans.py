"""Orphans: what modules that were removed leave behind in the queue."""

from dataclasses import dataclass

from app.kernel.actions import Database, Transaction, change, read
from app.kernel.paging import Page
from app.kernel.queue.orphans import Orphan, OrphanAdmin, RemovedOrphans


@dataclass(frozen=True, slots=True)
class Orphans:
    """See and remove what modules that were removed leave behind.

    Only on the command line: a process of an older release takes for orphans what a newer one declares.
    """

    admin: OrphanAdmin

    @read("platform.list_orphans", command="orphans list")
    async def list(self, db: Database) -> Page[Orphan]:
        """List schedules, subscriptions, jobs and dead letters that no module of this installation declares."""
        return Page(await self.admin.all(db))

    @change("platform.remove_orphans", command="orphans remove", confirm="Remove everything that orphans list shows?")
    async def remove(self, tx: Transaction) -> RemovedOrphans:
        """Remove schedules, subscriptions, jobs and dead letters that no module of this installation declares.

        Jobs that are running stay. Safe to repeat.
        """
        return await self.admin.remove(tx)
