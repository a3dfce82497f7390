"""Orphans: schedules, subscriptions, jobs and dead letters of removed modules."""

from dataclasses import asdict, dataclass

from app.kernel.actions import Caller, Database, change, read
from app.kernel.audit import Audit
from app.kernel.paging import Page
from app.kernel.queue.orphans import Orphan, OrphanAdmin, RemovedOrphans

_AT_ONCE = 5000
_MOST_TRANSACTIONS = 10_000


@dataclass(frozen=True, slots=True)
class Orphans:
    """List and remove orphans.

    Only on the command line: to a process of an older release, declarations of a newer one are orphans.
    """

    admin: OrphanAdmin
    audit: Audit

    @read("platform.list_orphans", command="orphans list")
    async def list(self, db: Database) -> Page[Orphan]:
        """List schedules, subscriptions, jobs and dead letters that no module of this installation declares."""
        return Page(await self.admin.all(db))

    @change("platform.remove_orphans", command="orphans remove", confirm="Remove all orphans?")
    async def remove(self, db: Database, caller: Caller) -> RemovedOrphans:
        """Remove schedules, subscriptions, jobs and dead letters that no module of this installation declares.

        Each transaction removes up to 5000 jobs and as many dead letters, and records that. Running jobs stay. Safe to
        repeat.
        """
        total = RemovedOrphans()
        for _ in range(_MOST_TRANSACTIONS):
            async with db.begin() as tx:
                removed = await self.admin.remove(tx, _AT_ONCE)
                if removed == RemovedOrphans():
                    break
                await self.audit.record(tx, caller, "platform.remove_orphans", **asdict(removed))
            total += removed
        return total
