"""Repositories of auth: SQL beside its method."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.db import Queries, Transaction
from app.modules.auth.domain import Actor, AuthenticatedCaller, Claims, Session


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


@dataclass(frozen=True, slots=True)
class PostgresSessions:
    """Sessions in `auth.sessions`."""

    async def start(self, tx: Transaction, session: Session) -> None:
        sql = """
            WITH active AS (UPDATE auth.actors SET last_active_at = now() WHERE id = %(actor_id)s)
            INSERT INTO auth.sessions (id, actor_id, refresh_counter, idle_expires_at, expires_at)
            VALUES (%(id)s, %(actor_id)s, %(counter)s, %(idle)s, %(expires)s)
        """
        await tx.run(
            sql,
            {
                "id": session.id,
                "actor_id": session.actor_id,
                "counter": session.refresh_counter,
                "idle": session.idle_expires_at,
                "expires": session.expires_at,
            },
        )

    async def caller(self, db: Queries, claims: Claims) -> AuthenticatedCaller | None:
        sql = """
            SELECT a.id, a.type, a.username, a.is_superuser, a.is_active, a.last_active_at, a.created_at, a.updated_at,
                   ARRAY(SELECT p.permission FROM auth.actor_permissions p WHERE p.actor_id = a.id ORDER BY 1)
            FROM auth.sessions s
            JOIN auth.actors a ON a.id = s.actor_id
            WHERE s.id = %s AND a.id = %s AND a.is_active
              AND s.ended_at IS NULL AND s.idle_expires_at > now() AND s.expires_at > now()
        """
        row = await db.one(sql, (claims.session_id, claims.actor_id))
        if row is None:
            return None
        actor = Actor(*row[:-1])
        return AuthenticatedCaller(actor.id, claims.session_id, frozenset(row[-1]), actor.is_superuser, actor)

    async def touch(self, db: Queries, actor_id: UUID) -> None:
        sql = """
            UPDATE auth.actors SET last_active_at = now()
            WHERE id = %s AND last_active_at < now() - interval '1 minute'
        """
        await db.run(sql, (actor_id,))

    async def end(self, db: Queries, session_id: UUID) -> bool:
        sql = "UPDATE auth.sessions SET ended_at = now() WHERE id = %s AND ended_at IS NULL"
        return await db.run(sql, (session_id,)) == 1


@dataclass(frozen=True, slots=True)
class PostgresSigningKeys:
    """Signing keys in `auth.signing_keys`; the private part arrives and leaves encrypted."""

    async def all(self, db: Queries) -> list[tuple[str, bytes]]:
        """Return key ids and encrypted private keys, newest first."""
        rows = await db.all("SELECT kid, private_key FROM auth.signing_keys ORDER BY created_at DESC, kid DESC")
        return [(kid, bytes(private_key)) for kid, private_key in rows]

    async def add_first(self, tx: Transaction, kid: str, private_key: bytes) -> None:
        """Store the first key, unless another process was faster."""
        await tx.run("LOCK TABLE auth.signing_keys IN SHARE ROW EXCLUSIVE MODE")
        sql = """
            INSERT INTO auth.signing_keys (kid, algorithm, private_key)
            SELECT %s, 'ES256', %s WHERE NOT EXISTS (SELECT FROM auth.signing_keys)
        """
        await tx.run(sql, (kid, private_key))
