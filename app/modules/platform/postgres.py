"""Repositories of platform: SQL beside its method."""

from dataclasses import dataclass

from app.kernel.db import Queries
from app.kernel.identifiers import uuid7


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """Heartbeats in `platform.heartbeats`."""

    async def add(self, db: Queries) -> None:
        """Store a heartbeat of now, and forget those older than a day."""
        sql = """
            WITH forgotten AS (DELETE FROM platform.heartbeats WHERE recorded_at < now() - interval '1 day')
            INSERT INTO platform.heartbeats (id) VALUES (%s)
        """
        await db.run(sql, (uuid7(),))
