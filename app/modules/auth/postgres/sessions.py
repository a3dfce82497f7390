"""Sessions in `auth.sessions`."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.callers import Caller, Origin
from app.kernel.db import Queries, Transaction, run_in_chunks
from app.modules.auth.domain.actors import Actor
from app.modules.auth.domain.sessions import (
    AuthenticatedCaller,
    BrowserSession,
    Claims,
    LiveSession,
    LoadedCaller,
    Session,
    SessionNotFound,
    StoredSession,
    caller_tags,
)


@dataclass(frozen=True, slots=True)
class Sessions:
    """Sessions in `auth.sessions`."""

    async def start(
        self,
        tx: Transaction,
        session: Session,
        origin: Origin,
        *,
        scope: list[str] | None = None,
        api_key_id: UUID | None = None,
    ) -> bool:
        """Store a new session and the activity of its actor; return False if the actor is disabled.

        A scope limits the permissions of the session. A session of an API key expires with the key.
        """
        sql = """
            WITH active AS (
                UPDATE auth.actors SET last_active_at = now() WHERE id = %(actor_id)s AND is_active RETURNING id
            )
            INSERT INTO auth.sessions
                (id, actor_id, refresh_counter, rotated_at, idle_expires_at, expires_at, address, user_agent,
                 scope, api_key_id)
            SELECT %(id)s, id, %(counter)s, %(rotated)s, %(idle)s,
                   least(%(expires)s, (SELECT expires_at FROM auth.api_keys WHERE id = %(api_key_id)s::uuid)),
                   %(address)s, %(agent)s, %(scope)s::text[], %(api_key_id)s::uuid
            FROM active
        """
        return (
            await tx.run(
                sql,
                {
                    "id": session.id,
                    "actor_id": session.actor_id,
                    "counter": session.refresh_counter,
                    "rotated": session.rotated_at,
                    "idle": session.idle_expires_at,
                    "expires": session.expires_at,
                    "address": origin.address,
                    "agent": origin.user_agent,
                    "scope": scope,
                    "api_key_id": api_key_id,
                },
            )
            == 1
        )

    async def caller(self, db: Queries, claims: Claims) -> LoadedCaller | None:
        """Return the active actor of a live session, with its current permissions.

        Triggers invalidate what it reads (`auth.callers`).
        """
        sql = """
            SELECT a.id, a.type, a.username, a.is_superuser, a.is_active, a.last_active_at, a.created_at, a.updated_at,
                   ARRAY(
                       SELECT p.permission FROM auth.actor_permissions p WHERE p.actor_id = a.id
                       UNION
                       SELECT p.permission
                       FROM auth.actor_roles r JOIN auth.role_permissions p USING (role_id)
                       WHERE r.actor_id = a.id
                   ),
                   s.scope,
                   ARRAY(SELECT r.role_id FROM auth.actor_roles r WHERE r.actor_id = a.id),
                   extract(epoch FROM least(
                       s.idle_expires_at, s.expires_at, coalesce(a.last_active_at + interval '1 minute', now())
                   ) - now())::float8
            FROM auth.sessions s
            JOIN auth.actors a ON a.id = s.actor_id
            WHERE s.id = %s AND a.id = %s AND a.is_active
              AND s.ended_at IS NULL AND s.idle_expires_at > now() AND s.expires_at > now()
        """
        row = await db.one(sql, (claims.session_id, claims.actor_id))
        if row is None:
            return None
        *of_actor, permissions, scope, roles, fresh_s = row
        actor, held = Actor(*of_actor), frozenset(permissions)
        if scope is not None:  # a superuser's client has only the permissions of its scope
            held = frozenset(scope) if actor.is_superuser else held.intersection(scope)
        is_superuser = actor.is_superuser and scope is None
        caller = AuthenticatedCaller(actor.id, claims.session_id, held, is_superuser, actor=actor)
        return LoadedCaller(caller, caller_tags(f"session:{claims.session_id}", actor, roles), fresh_s)

    async def touch(self, db: Queries, actor_id: UUID) -> None:
        """Store the activity of an actor, at most once a minute."""
        sql = """
            UPDATE auth.actors SET last_active_at = now()
            WHERE id = %s AND (last_active_at IS NULL OR last_active_at <= now() - interval '1 minute')
        """
        await db.run(sql, (actor_id,))

    async def lock(self, tx: Transaction, session_id: UUID) -> StoredSession | None:
        """Lock a session of an active actor until the transaction ends, and return it."""
        sql = """
            SELECT s.id, s.actor_id, s.refresh_counter, s.rotated_at, s.idle_expires_at, s.expires_at, s.ended_at,
                   now()
            FROM auth.sessions s
            JOIN auth.actors a ON a.id = s.actor_id
            WHERE s.id = %s AND a.is_active
            FOR UPDATE OF s
        """
        row = await tx.one(sql, (session_id,))
        return None if row is None else StoredSession(*row)

    async def check_still_lives(self, tx: Transaction, caller: Caller) -> None:
        """Lock the caller's session. Raises SessionNotFound if it has ended since the request began."""
        session = await self.lock(tx, caller.session_id) if caller.session_id else None
        if session is None or session.ended_at is not None:
            raise SessionNotFound

    async def rotate(self, tx: Transaction, session: Session) -> None:
        """Store the next counter and idle limit of a session."""
        sql = """
            UPDATE auth.sessions SET refresh_counter = %s, rotated_at = %s, idle_expires_at = %s WHERE id = %s
        """
        await tx.run(sql, (session.refresh_counter, session.rotated_at, session.idle_expires_at, session.id))

    async def end(self, db: Queries, session_id: UUID, actor_id: UUID) -> bool:
        """End a session of an actor; return whether it was live."""
        sql = "UPDATE auth.sessions SET ended_at = now() WHERE id = %s AND actor_id = %s AND ended_at IS NULL"
        return await db.run(sql, (session_id, actor_id)) == 1

    async def end_all(self, db: Queries, actor_id: UUID, but: UUID | None = None) -> int:
        """End all sessions of an actor except `but`; return the number of ended sessions."""
        sql = """
            UPDATE auth.sessions SET ended_at = now()
            WHERE actor_id = %s AND id IS DISTINCT FROM %s AND ended_at IS NULL
        """
        return await db.run(sql, (actor_id, but))

    async def in_browser(self, db: Queries, digest: bytes) -> BrowserSession | None:
        """Return the live session of the browser whose token has this hash."""
        sql = """
            SELECT s.id, s.actor_id, extract(epoch FROM now() - s.confirmed_at)::float8,
                   EXISTS (SELECT FROM auth.totp t WHERE t.actor_id = a.id AND t.confirmed_at IS NOT NULL)
            FROM auth.sessions s
            JOIN auth.actors a ON a.id = s.actor_id
            WHERE s.browser_token = %s AND a.is_active
              AND s.ended_at IS NULL AND s.idle_expires_at > now() AND s.expires_at > now()
        """
        row = await db.one(sql, (digest,))
        return None if row is None else BrowserSession(*row)

    async def confirm_in_browser(self, db: Queries, session_id: UUID, digest: bytes, before: bytes | None) -> bool:
        """Store the hash of a new token, and that the actor has just proven who it is.

        Returns False if the session has ended, or has another token than the one with the hash `before`.
        """
        sql = """
            UPDATE auth.sessions SET browser_token = %s, confirmed_at = now()
            WHERE id = %s AND browser_token IS NOT DISTINCT FROM %s AND ended_at IS NULL
        """
        return await db.run(sql, (digest, session_id, before)) == 1

    async def keep(self, db: Queries, session_id: UUID, idle_s: float) -> None:
        """Store the activity of a session without refresh tokens: move its idle limit, at most once a minute."""
        sql = """
            UPDATE auth.sessions
            SET rotated_at = now(), idle_expires_at = least(now() + %(idle_s)s * interval '1 second', expires_at)
            WHERE id = %(id)s AND ended_at IS NULL AND idle_expires_at > now()
              AND rotated_at <= now() - least(%(idle_s)s / 4, 60) * interval '1 second'
        """
        await db.run(sql, {"id": session_id, "idle_s": idle_s})

    async def live(
        self, db: Queries, actor_id: UUID, current: UUID | None, limit: int, after: UUID | None
    ) -> list[LiveSession]:
        """Return live sessions of an actor, newest first, after an id."""
        sql = """
            SELECT id, created_at, rotated_at, least(idle_expires_at, expires_at),
                   coalesce(address, ''), coalesce(user_agent, ''), id IS NOT DISTINCT FROM %(current)s
            FROM auth.sessions
            WHERE actor_id = %(actor_id)s AND ended_at IS NULL AND idle_expires_at > now() AND expires_at > now()
              AND (%(after)s::uuid IS NULL OR id < %(after)s)
            ORDER BY id DESC
            LIMIT %(limit)s
        """
        given = {"actor_id": actor_id, "current": current, "limit": limit, "after": after}
        return [LiveSession(*row) for row in await db.all(sql, given)]

    async def prune(self, db: Queries, kept_s: float) -> int:
        """Remove sessions that ended or expired more than `kept_s` ago; return their number."""
        sql = """
            DELETE FROM auth.sessions WHERE id IN (
                SELECT id FROM auth.sessions
                WHERE least(idle_expires_at, expires_at, coalesce(ended_at, 'infinity'))
                    < now() - %(kept_s)s * interval '1 second'
                ORDER BY least(idle_expires_at, expires_at, coalesce(ended_at, 'infinity')) LIMIT %(chunk)s
            )
        """
        return await run_in_chunks(db, sql, kept_s=kept_s)
