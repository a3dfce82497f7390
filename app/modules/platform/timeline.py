"""The timeline: what changed, and when."""

from dataclasses import dataclass

from app.kernel.actions import Database, read
from app.kernel.actions.usecases import UseCases
from app.kernel.paging import Cursor, Limit, Page, after, next_cursor
from app.kernel.timeline import Changed, TimelineLog


@dataclass(frozen=True, slots=True)
class ChangesWanted:
    """Page of the timeline."""

    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """List what changed, and when."""

    log: TimelineLog
    cases: UseCases

    @read(
        "platform.list_timeline",
        GET="/platform/v1/timeline",
        permission="platform:timeline:read",
        command="timeline list",
        empty="releases, migrations, settings, pauses and role changes are recorded as they happen",
        examples=("", "--limit 100 --json"),
    )
    async def list(self, db: Database, wanted: ChangesWanted) -> Page[Changed]:
        """List what changed, newest first: releases, settings, migrations, pauses, role changes, spikes of errors."""
        notable = [case.id for case in self.cases.known if case.notable]
        found = await self.log.page(db, notable, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))
