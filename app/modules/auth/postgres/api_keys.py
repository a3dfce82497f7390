"""API keys in `auth.api_keys`."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.db import Queries, Transaction
from app.modules.auth.domain.actors import Actor
from app.modules.auth.domain.api_keys import ApiKey
from app.modules.auth.domain.sessions import AuthenticatedCaller, LoadedCaller, caller_tags


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """API keys in `auth.api_keys`."""

    async def add(self, tx: Transaction, key: ApiKey, actor_id: UUID, secret_hash: bytes) -> None:
        """Store a new key."""
        sql = """
            INSERT INTO auth.api_keys (id, actor_id, name, secret_hash, permissions, expires_at, created_at)
            VALUES (%s, %s, %s, %s, %s, %s, %s)
        """
        await tx.run(sql, (key.id, actor_id, key.name, secret_hash, key.permissions, key.expires_at, key.created_at))

    async def of_actor(self, db: Queries, actor_id: UUID, limit: int, after: UUID | None) -> list[ApiKey]:
        """Return a page of the keys of an account, newest first."""
        sql = """
            SELECT id, name, permissions, expires_at, last_used_at, created_at FROM auth.api_keys
            WHERE actor_id = %(actor_id)s AND (%(after)s::uuid IS NULL OR id < %(after)s)
            ORDER BY id DESC
            LIMIT %(limit)s
        """
        given = {"actor_id": actor_id, "limit": limit, "after": after}
        return [ApiKey(*row) for row in await db.all(sql, given)]

    async def remove(self, tx: Transaction, actor_id: UUID, key_id: UUID) -> bool:
        """Remove a key of an account; return whether it existed."""
        return await tx.run("DELETE FROM auth.api_keys WHERE id = %s AND actor_id = %s", (key_id, actor_id)) == 1

    async def revoke(self, tx: Transaction, key_id: UUID, secret_hash: bytes) -> UUID | None:
        """Remove a key by its secret, also an expired one; return the id of its actor."""
        sql = "DELETE FROM auth.api_keys WHERE id = %s AND secret_hash = %s RETURNING actor_id"
        row = await tx.one(sql, (key_id, secret_hash))
        return None if row is None else row[0]

    async def caller(self, db: Queries, key_id: UUID, secret_hash: bytes) -> LoadedCaller | None:
        """Return the active account of a valid key, with the permissions that both have.

        Triggers invalidate what it reads (`auth.callers`).
        """
        # a superuser's key has only the permissions that it lists
        sql = """
            SELECT a.id, a.type, a.username, a.is_superuser, a.is_active, a.last_active_at, a.created_at, a.updated_at,
                   ARRAY(
                       SELECT wanted FROM unnest(k.permissions) wanted
                       WHERE a.is_superuser OR wanted IN (
                           SELECT p.permission FROM auth.actor_permissions p WHERE p.actor_id = a.id
                           UNION
                           SELECT p.permission
                           FROM auth.actor_roles r JOIN auth.role_permissions p USING (role_id)
                           WHERE r.actor_id = a.id
                       )
                   ),
                   ARRAY(SELECT r.role_id FROM auth.actor_roles r WHERE r.actor_id = a.id),
                   extract(epoch FROM least(
                       k.expires_at, coalesce(k.last_used_at + interval '1 minute', now())
                   ) - now())::float8
            FROM auth.api_keys k
            JOIN auth.actors a ON a.id = k.actor_id
            WHERE k.id = %s AND k.secret_hash = %s AND k.expires_at > now() AND a.is_active
        """
        row = await db.one(sql, (key_id, secret_hash))
        if row is None:
            return None
        *of_actor, permissions, roles, fresh_s = row
        actor = Actor(*of_actor)
        caller = AuthenticatedCaller(actor.id, None, frozenset(permissions), is_superuser=False, actor=actor)
        return LoadedCaller(caller, caller_tags(f"key:{key_id}", actor, roles), fresh_s)

    async def touch(self, db: Queries, key_id: UUID) -> None:
        """Store the time of use of a key, at most once a minute."""
        sql = """
            WITH used AS (
                UPDATE auth.api_keys SET last_used_at = now()
                WHERE id = %s AND (last_used_at IS NULL OR last_used_at <= now() - interval '1 minute')
                RETURNING actor_id
            )
            UPDATE auth.actors SET last_active_at = now() WHERE id IN (SELECT actor_id FROM used)
        """
        await db.run(sql, (key_id,))
