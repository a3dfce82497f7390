"""Versions and settings that processes were started with; unlike rows of the registry, they outlive the processes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.kernel.config import Settings
from app.kernel.db import Database, Queries
from app.kernel.identifiers import uuid7

_LOCK = (1802661741, 3)
_OF_ONE = frozenset(
    {"http_server.host", "http_server.port", "http_server.tls_cert", "http_server.tls_key"}
    | {"operations.host", "operations.port", "logger.output"}
)
"""Settings in which processes of a machine differ."""

_SAME = """
    UPDATE kernel.rollouts SET last_seen_at = now() WHERE id = (
        SELECT id FROM kernel.rollouts
        WHERE name = %(name)s AND version = %(version)s AND settings = %(settings)s AND (
            last_seen_at > now() - interval '10 minutes'
            OR id = (SELECT id FROM kernel.rollouts WHERE name = %(name)s ORDER BY id DESC LIMIT 1)
        )
        ORDER BY id DESC LIMIT 1
    )
    RETURNING id
"""
_ROLL_OUT = """
    INSERT INTO kernel.rollouts (id, name, version, settings) VALUES (%(id)s, %(name)s, %(version)s, %(settings)s)
    RETURNING id
"""
_RELEASES = """
    SELECT version, at FROM (
        SELECT version, at, lag(version) OVER (ORDER BY id) AS earlier FROM kernel.rollouts
    ) rollouts WHERE version IS DISTINCT FROM earlier AND at >= %s ORDER BY at
"""
# a key that only one of two versions has is of the release, not of an operator
_CHANGES = """
    SELECT id, at, name, r.version, last.version, changed FROM kernel.rollouts r
    LEFT JOIN LATERAL (
        SELECT version FROM kernel.rollouts WHERE id < r.id ORDER BY id DESC LIMIT 1
    ) last ON true
    LEFT JOIN LATERAL (
        SELECT settings FROM kernel.rollouts WHERE name = r.name AND id < r.id ORDER BY id DESC LIMIT 1
    ) own ON true
    LEFT JOIN LATERAL (
        SELECT jsonb_object_agg(key, jsonb_build_array(old.value, new.value)) AS changed
        FROM jsonb_each(r.settings) new JOIN jsonb_each(own.settings) old USING (key) WHERE old.value <> new.value
    ) compared ON true
    WHERE (r.version IS DISTINCT FROM last.version OR changed IS NOT NULL)
      AND (%(after)s::uuid IS NULL OR id < %(after)s)
    ORDER BY id DESC LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Release:
    """When the first process of a version started, after others had run."""

    version: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Rollout:
    """A kind of process that was started with another version than before, or with other settings.

    `earlier` is the version that ran before; `settings` are keys with their old and new values.
    """

    id: UUID
    at: datetime
    name: str
    version: str
    earlier: str | None
    settings: Mapping[str, list[str]]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The rows of `kernel.rollouts`."""

    async def roll_out(self, db: Database, name: str, version: str, settings: Mapping[str, str]) -> UUID:
        """Store what a process was started with unless others run it, or did minutes ago; return the id of the row."""
        about = {"id": uuid7(), "name": name, "version": version, "settings": json.dumps(settings)}
        async with db.begin() as tx:
            await tx.run("SELECT pg_advisory_xact_lock(%s, %s)", _LOCK)
            row = await tx.one(_SAME, about) or await tx.one(_ROLL_OUT, about)
        assert row is not None
        return row[0]

    async def releases(self, db: Queries, since: datetime) -> list[Release]:
        """Return the releases that started since a time, oldest first."""
        return [Release(*row) for row in await db.all(_RELEASES, (since,))]

    async def changes(self, db: Queries, limit: int, after: UUID | None) -> list[Rollout]:
        """Return what changed, newest first, after an id."""
        rows = await db.all(_CHANGES, {"limit": limit, "after": after})
        return [
            Rollout(key, at, name, version, earlier, changed or {}) for key, at, name, version, earlier, changed in rows
        ]


def started_with(settings: Settings) -> dict[str, str]:
    """Return the effective settings by key: no secrets, and nothing in which processes of a machine differ."""
    return {value.key: value.text for value in settings.values() if not value.secret and value.key not in _OF_ONE}
