"""The timeline: what changed, and when."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from app.kernel.actions import Database, read
from app.kernel.actions.usecases import UseCases
from app.kernel.identifiers import uuid_of
from app.kernel.paging import Cursor, Limit, Page, after, next_cursor
from app.kernel.timeline import Changed, TimelineLog
from app.modules.auth.portal import Names


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
    names: Names

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
        ids = {uuid_of(text) for change in found for text in (change.by, change.target)}
        names = await self.names([each for each in ids if each is not None])
        return Page([_named(change, names) for change in found], next_cursor(found, wanted.limit))


def _named(change: Changed, names: Mapping[UUID, str]) -> Changed:
    """Return a change that names its actor and its target, as far as they still exist."""
    by, target = uuid_of(change.by), uuid_of(change.target)
    what = change.what.replace(str(target), names[target], 1) if target and target in names else change.what
    return replace(change, what=what, by=names.get(by, change.by) if by else change.by)
