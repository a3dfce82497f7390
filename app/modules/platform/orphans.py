"""Orphans: schedules, subscriptions, jobs and dead letters of removed modules."""

from dataclasses import asdict, dataclass

from app.kernel.actions import Database, Note, Transaction, change, read
from app.kernel.paging import Page
from app.kernel.queue.orphans import Orphan, OrphanAdmin, RemovedOrphans


@dataclass(frozen=True, slots=True)
class Orphans:
    """List and remove orphans.

    Only on the command line: to a process of an older release, declarations of a newer one are orphans.
    """

    admin: OrphanAdmin

    @read("platform.list_orphans", command="orphans list")
    async def list(self, db: Database) -> Page[Orphan]:
        """List schedules, subscriptions, jobs and dead letters that no module of this installation declares."""
        return Page(await self.admin.all(db))

    @change("platform.remove_orphans", command="orphans remove", confirm="Remove all orphans?")
    async def remove(self, tx: Transaction, note: Note) -> RemovedOrphans:
        """Remove schedules, subscriptions, jobs and dead letters that no module of this installation declares.

        Running jobs stay. Safe to repeat.
        """
        removed = await self.admin.remove(tx)
        note.details |= asdict(removed)
        note.recorded = any(note.details.values())
        return removed
