"""What changed in a deployment, from what is recorded already: rollouts, migrations, the audit trail, time series."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal
from uuid import UUID

from app.kernel.actions.columns import Column, Columns
from app.kernel.db import Queries
from app.kernel.process.rollouts import Rollout, Rollouts
from app.kernel.series import Series, Spike

Kind = Literal["release", "settings", "migration", "change", "errors"]

# those that were applied together are one entry
_MIGRATIONS = """
    SELECT max(applied_at_utc) AT TIME ZONE 'UTC', count(*), min(migration_id), max(migration_id)
    FROM _migrations GROUP BY date_trunc('minute', applied_at_utc) ORDER BY 1 DESC LIMIT 1000
"""
_CHANGES = """
    SELECT id, at, action, target, actor_id, address, details, trace_id FROM kernel.audit
    WHERE action = ANY(%(actions)s) AND id < %(before)s AND outcome = 'done' ORDER BY id DESC LIMIT %(limit)s
"""
_LAST = UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class Changed:
    """Something that changed: a release, settings, the schema, an operator's change, or a spike of errors.

    `by` is the actor, or os:USER@HOST. `trace_id` leads to the details of a change.
    """

    id: UUID
    at: datetime
    kind: Kind
    what: str
    by: str = ""
    target: str | None = None
    trace_id: str | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    columns: ClassVar[Columns] = (
        Column("at"),
        Column("kind"),
        Column("what"),
        Column("by", extra=True),
    )


@dataclass(frozen=True, slots=True)
class TimelineLog:
    """Merges the changes of all kinds."""

    rollouts: Rollouts
    series: Series

    async def page(self, db: Queries, actions: Sequence[str], limit: int, after: UUID | None) -> list[Changed]:
        """Return what changed, newest first, after an id. `actions` are those of the audit trail to include."""
        before = after or _LAST
        found = [_of_migrations(*row) for row in await db.all(_MIGRATIONS)]
        found += [_of_spike(spike) for spike in await self.series.spikes(db, 1000)]
        found = [change for change in found if change.id < before]
        for rollout in await self.rollouts.changes(db, limit, after):
            found += _of_rollout(rollout)
        rows = await db.all(_CHANGES, {"actions": list(actions), "before": before, "limit": limit})
        found += [_of_audit(*row) for row in rows]
        return sorted(found, key=lambda change: change.id, reverse=True)[:limit]


def _of_migrations(at: datetime, count: int, first: str, last: str) -> Changed:
    what = f"applied {last}" if count == 1 else f"applied {count} migrations, {first} to {last}"
    return Changed(_id_of(at, last), at, "migration", what)


def _of_spike(spike: Spike) -> Changed:
    what = f"{spike.errors} errors within {'a minute' if spike.resolution == 'minute' else 'an hour'}"
    what += f", usually {spike.usual:.1f}" if spike.usual else ""
    return Changed(_id_of(spike.at, spike.resolution), spike.at, "errors", what)


def _of_rollout(rollout: Rollout) -> Iterator[Changed]:
    changed = ", ".join(f"{key} {old or 'empty'} -> {new or 'empty'}" for key, (old, new) in rollout.settings.items())
    details = {"settings": dict(rollout.settings)} if changed else {}
    if rollout.version != rollout.earlier:
        what = (
            f"{rollout.version} started, after {rollout.earlier}" if rollout.earlier else f"{rollout.version} started"
        )
        what += f"; {changed}" if changed else ""
        yield Changed(rollout.id, rollout.at, "release", what, target=rollout.name, details=details)
    else:
        what = f"{rollout.name}: {changed}"
        yield Changed(rollout.id, rollout.at, "settings", what, target=rollout.name, details=details)


def _of_audit(
    key: UUID,
    at: datetime,
    action: str,
    target: str | None,
    actor_id: UUID | None,
    address: str | None,
    details: dict[str, Any],
    trace_id: str | None,
) -> Changed:
    more = ", ".join(f"{name} {value}" for name, value in details.items() if isinstance(value, str | int | float))
    what = f"{action.partition('.')[2].replace('_', ' ')} {target or ''}".strip() + (f" ({more})" if more else "")
    return Changed(key, at, "change", what, str(actor_id or address or ""), target, trace_id, details)


def _id_of(at: datetime, name: str) -> UUID:
    """Return the id of something without one: a UUIDv7 of its time, always the same."""
    tail = int.from_bytes(hashlib.sha256(name.encode()).digest()[:10], "big")
    value = (int(at.timestamp() * 1000) << 80) | (tail & ~(0xF << 76) | 0x7 << 76)
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)
