"""Actors in `auth.actors`."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.db import Queries, Transaction
from app.modules.auth.domain.actors import Actor


@dataclass(frozen=True, slots=True)
class PostgresActors:
    """Actors in `auth.actors`."""

    async def add_superuser(
        self, tx: Transaction, actor_id: UUID, username: str, username_key: str, password_hash: str
    ) -> bool:
        sql = """
            INSERT INTO auth.actors (id, type, username, username_key, password_hash, is_superuser)
            VALUES (%s, 'admin', %s, %s, %s, true)
            ON CONFLICT (username_key) DO NOTHING
        """
        return await tx.run(sql, (actor_id, username, username_key, password_hash)) == 1

    async def by_username(self, db: Queries, username_key: str) -> tuple[Actor, str | None] | None:
        sql = """
            SELECT id, type, username, is_superuser, is_active, last_active_at, created_at, updated_at, password_hash
            FROM auth.actors
            WHERE username_key = %s
        """
        row = await db.one(sql, (username_key,))
        return None if row is None else (Actor(*row[:-1]), row[-1])

    async def lock(self, tx: Transaction, actor_id: UUID) -> tuple[Actor, str | None] | None:
        sql = """
            SELECT id, type, username, is_superuser, is_active, last_active_at, created_at, updated_at, password_hash
            FROM auth.actors
            WHERE id = %s
            FOR UPDATE
        """
        row = await tx.one(sql, (actor_id,))
        return None if row is None else (Actor(*row[:-1]), row[-1])

    async def set_password(self, db: Queries, actor_id: UUID, password_hash: str) -> None:
        await db.run(
            "UPDATE auth.actors SET password_hash = %s, updated_at = now() WHERE id = %s", (password_hash, actor_id)
        )
