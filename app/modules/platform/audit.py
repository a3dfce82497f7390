"""The audit trail."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, fields
from datetime import UTC
from typing import ClassVar
from uuid import UUID

from app.kernel import csv
from app.kernel.actions import Database, read
from app.kernel.actions.columns import Column, Columns
from app.kernel.audit import Audit, Entry, EntryFilters
from app.kernel.db import Queries, now
from app.kernel.errors import Invalid
from app.kernel.http.results import File
from app.kernel.identifiers import uuid_of
from app.kernel.paging import Cursor, Limit, Page, after, next_cursor
from app.modules.auth.portal import Names
from app.modules.platform.domain.queue import check_zone

_AT_ONCE = 200  # formatting more would delay other requests


@dataclass(frozen=True, slots=True)
class EntriesWanted(EntryFilters):
    """Filters and page of a list of audit entries."""

    limit: Limit = 20
    cursor: Cursor | None = None


@dataclass(frozen=True, slots=True)
class ListedEntry(Entry):
    """An entry of the audit trail, with the current names of its actor and of its target, if they have one."""

    actor_name: str
    target_name: str

    columns: ClassVar[Columns] = (
        Column("at"),
        Column("who", lambda entry: entry.actor_name or entry.actor_id or entry.address),
        Column("action"),
        Column("target", lambda entry: entry.target_name or entry.target),
        Column("outcome", is_state=True),
        Column("count", extra=True),
        Column("address", extra=True),
        Column("user agent", extra=True),
        Column("details", lambda entry: entry.details or None, extra=True),
        Column("actor id", extra=True),
        Column("target id", "target", extra=True),
        Column("request id", extra=True),
        Column("trace id", extra=True),
    )


@dataclass(frozen=True, slots=True)
class AuditTrail:
    """Read the audit trail."""

    audit: Audit
    names: Names

    @read(
        "platform.list_audit",
        GET="/platform/v1/audit",
        permission="platform:audit:read",
        replica=True,
        command="audit list",
        examples=("--action auth.login --outcome INVALID_CREDENTIALS", "--from 2026-11-01 --csv"),
    )
    async def list(self, db: Database, wanted: EntriesWanted) -> Page[ListedEntry]:
        """List audit entries, newest first: who did what to whom, from where, with which outcome."""
        _check(wanted)
        found = await self._page(db, wanted, wanted.limit, after(wanted.cursor))
        return Page(found, next_cursor(found, wanted.limit))

    @read(
        "platform.export_audit",
        GET="/platform/v1/audit.csv",
        permission="platform:audit:read",
        replica=True,
        timeout_s=60,
    )
    async def export(self, db: Database, wanted: EntryFilters) -> File:
        """Return the matching audit entries as CSV, newest first; up to 100000, more are refused."""
        _check(wanted)
        if await self.audit.count(db, wanted, csv.MOST_ROWS + 1) > csv.MOST_ROWS:
            problem = f"more than {csv.MOST_ROWS} entries match; select a shorter period"
            raise Invalid(problem, (("from", problem),))
        at = (await now(db)).astimezone(UTC)
        return File(self._csv(db, wanted), csv.MEDIA_TYPE, f"audit-{at:%Y-%m-%dT%H%M%SZ}.csv")

    async def _csv(self, db: Queries, wanted: EntryFilters) -> AsyncGenerator[bytes]:
        yield csv.heading(ListedEntry.columns).encode()
        last: UUID | None = None
        while found := await self._page(db, wanted, _AT_ONCE, last):
            yield csv.lines(ListedEntry.columns, found).encode()
            last = found[-1].id

    async def _page(self, db: Queries, wanted: EntryFilters, limit: int, last: UUID | None) -> "list[ListedEntry]":
        found = await self.audit.page(db, wanted, limit, last)
        ids = {entry.actor_id for entry in found} | {uuid_of(entry.target) for entry in found}
        names = await self.names([each for each in ids if each is not None])
        return [
            ListedEntry(
                *(getattr(entry, item.name) for item in fields(entry)),
                actor_name=names.get(entry.actor_id, "") if entry.actor_id else "",
                target_name=names.get(target, "") if (target := uuid_of(entry.target)) else "",
            )
            for entry in found
        ]


def _check(filters: EntryFilters) -> None:
    check_zone(**{"from": filters.from_, "to": filters.to})
