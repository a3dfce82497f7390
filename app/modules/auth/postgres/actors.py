"""Actors in `auth.actors`."""

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from app.kernel.db import Queries, Transaction, where
from app.modules.auth.domain.actors import Actor, ActorNotFound, ActorType, folded

_SEARCHED = 100_000
"""Maximum number of actors that a page with a part of a username reads: it has no index."""


@dataclass(frozen=True, slots=True)
class Actors:
    """Actors in `auth.actors`."""

    async def by_username(self, db: Queries, username_key: str) -> tuple[Actor, str | None] | None:
        """Return the actor and its password hash."""
        sql = """
            SELECT id, type, username, is_superuser, is_active, last_active_at, created_at, updated_at, password_hash
            FROM auth.actors
            WHERE username_key = %s
        """
        row = await db.one(sql, (username_key,))
        return None if row is None else (Actor(*row[:-1]), row[-1])

    async def has_superuser(self, db: Queries) -> bool:
        """Return whether there is an active superuser."""
        return await db.one("SELECT FROM auth.actors WHERE is_superuser AND is_active LIMIT 1") is not None

    async def lock(self, tx: Transaction, actor_id: UUID) -> tuple[Actor, str | None] | None:
        """Lock an actor until the transaction ends; return it and its password hash."""
        sql = """
            SELECT id, type, username, is_superuser, is_active, last_active_at, created_at, updated_at, password_hash
            FROM auth.actors
            WHERE id = %s
            FOR UPDATE
        """
        row = await tx.one(sql, (actor_id,))
        return None if row is None else (Actor(*row[:-1]), row[-1])

    async def page(
        self, db: Queries, kind: ActorType | None, is_active: bool | None, q: str | None, limit: int, after: UUID | None
    ) -> tuple[list[Actor], UUID | None]:
        """Return a page of actors, newest first, and where the next one begins; None at the end.

        `q` is a part of the username. With it, a page is of the newest 100,000 actors that match the other filters, and
        may be empty although there is a next one.
        """
        sql = """
            SELECT id, type, username, is_superuser, is_active, last_active_at, created_at, updated_at
            FROM auth.actors
        """
        asked = (
            "id < %(after)s" if after else "",
            "type = %(type)s" if kind else "",
            "" if is_active is None else "is_active" if is_active else "NOT is_active",
        )
        given: dict[str, object] = {"after": after, "type": kind, "limit": limit}
        last: UUID | None = None
        if q is not None:
            oldest = "SELECT id FROM auth.actors" + where(*asked) + "ORDER BY id DESC OFFSET %(searched)s LIMIT 1"  # noqa: S608
            row = await db.one(oldest, {**given, "searched": _SEARCHED - 1})
            last = row[0] if row else None
            given |= {"q": folded(q.strip()), "last": last}
            asked += ("strpos(username_key, %(q)s) > 0", "id >= %(last)s" if last else "")
        rows = await db.all(sql + where(*asked) + "ORDER BY id DESC LIMIT %(limit)s", given)
        found = [Actor(*row) for row in rows]
        return found, found[-1].id if len(found) == limit else last

    async def get(self, db: Queries, actor_id: UUID) -> Actor:
        """Return an actor. Raises ActorNotFound."""
        sql = """
            SELECT id, type, username, is_superuser, is_active, last_active_at, created_at, updated_at
            FROM auth.actors
            WHERE id = %s
        """
        row = await db.one(sql, (actor_id,))
        if row is None:
            raise ActorNotFound
        return Actor(*row)

    async def names(self, db: Queries, ids: Collection[UUID]) -> dict[UUID, str]:
        """Return the usernames of actors and the names of roles, of those ids that are one."""
        if not ids:
            return {}
        sql = """
            SELECT id, username FROM auth.actors WHERE id = ANY(%(ids)s)
            UNION ALL SELECT id, name FROM auth.roles WHERE id = ANY(%(ids)s)
        """
        return dict(await db.all(sql, {"ids": list(ids)}))

    async def add(self, tx: Transaction, actor: Actor, username_key: str, password_hash: str | None) -> Actor | None:
        """Store a new actor; return it, or None if the username is taken."""
        sql = """
            INSERT INTO auth.actors (id, type, username, username_key, password_hash, is_superuser, is_active)
            VALUES (%s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (username_key) DO NOTHING
            RETURNING id, type, username, is_superuser, is_active, last_active_at, created_at, updated_at
        """
        given = (actor.id, actor.type, actor.username, username_key, password_hash, actor.is_superuser, actor.is_active)
        row = await tx.one(sql, given)
        return None if row is None else Actor(*row)

    async def save(self, tx: Transaction, actor: Actor, username_key: str) -> Actor | None:
        """Store a changed actor; return it, or None if the username is taken."""
        sql = """
            UPDATE auth.actors
            SET type = %(type)s, username = %(username)s, username_key = %(key)s, is_superuser = %(superuser)s,
                is_active = %(active)s, updated_at = now()
            WHERE id = %(id)s AND NOT EXISTS (SELECT FROM auth.actors WHERE username_key = %(key)s AND id <> %(id)s)
            RETURNING id, type, username, is_superuser, is_active, last_active_at, created_at, updated_at
        """
        given = {
            "id": actor.id,
            "type": actor.type,
            "username": actor.username,
            "key": username_key,
            "superuser": actor.is_superuser,
            "active": actor.is_active,
        }
        row = await tx.one(sql, given)
        return None if row is None else Actor(*row)

    async def superusers(self, tx: Transaction) -> frozenset[UUID]:
        """Lock the active superusers who can sign in until the transaction ends; return their ids."""
        sql = """
            SELECT id FROM auth.actors
            WHERE is_superuser AND is_active AND type <> 'service_acc' AND password_hash IS NOT NULL
            ORDER BY id
            FOR UPDATE
        """
        return frozenset(actor_id for (actor_id,) in await tx.all(sql))

    async def set_password(self, db: Queries, actor_id: UUID, password_hash: str) -> None:
        """Store a new password hash."""
        await db.run(
            "UPDATE auth.actors SET password_hash = %s, updated_at = now() WHERE id = %s", (password_hash, actor_id)
        )

    async def forget_ways_in(self, tx: Transaction, actor_id: UUID) -> None:
        """Remove the password, second factor, recovery codes and API keys of an actor."""
        sql = """
            WITH keys AS (DELETE FROM auth.api_keys WHERE actor_id = %(id)s),
                 second_factor AS (DELETE FROM auth.totp WHERE actor_id = %(id)s)
            UPDATE auth.actors SET password_hash = NULL WHERE id = %(id)s
        """
        await tx.run(sql, {"id": actor_id})
