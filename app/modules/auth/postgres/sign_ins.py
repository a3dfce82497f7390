"""The statements of a sign-in, combined to save round trips."""

from dataclasses import dataclass, field
from uuid import UUID

from app.kernel.callers import Origin
from app.kernel.db import Queries, Transaction
from app.modules.auth.domain.actors import Actor
from app.modules.auth.domain.limits import ACTOR_KEY, Tally, Try
from app.modules.auth.domain.sessions import Session
from app.modules.auth.postgres.limits import GIVE_BACK, given_back, tallies

_END_LEAST_USED = """
    UPDATE auth.sessions SET ended_at = now()
    WHERE id IN (
        SELECT id FROM auth.sessions
        WHERE actor_id = %(actor_id)s AND ended_at IS NULL
          AND idle_expires_at > now() AND expires_at > now()
        ORDER BY rotated_at DESC, id DESC
        OFFSET %(keep)s
    )
"""


@dataclass(frozen=True, slots=True)
class Account:
    """An actor, its password hash, and whether it has a second factor."""

    actor: Actor
    password_hash: str | None = field(repr=False)
    has_second_factor: bool


@dataclass(frozen=True, slots=True)
class SignIns:
    """Statements on `auth.actors`, `auth.sessions` and `auth.limits`."""

    async def find(
        self, db: Queries, username_key: str, limit_keys: list[str]
    ) -> tuple[Account | None, dict[str, Tally]]:
        """Return the account of a username, and the tallies of some keys and of the actor."""
        sql = """
            SELECT a.id, a.type, a.username, a.is_superuser, a.is_active, a.last_active_at, a.created_at, a.updated_at,
                   a.password_hash, t.confirmed_at IS NOT NULL,
                   l.key, l.hits - l.pending, l.pending,
                   ceil(extract(epoch FROM l.started_at - now()) + l.window_s)::int
            FROM (SELECT) AS asked
            LEFT JOIN auth.actors a ON a.username_key = %(username_key)s
            LEFT JOIN auth.totp t ON t.actor_id = a.id
            LEFT JOIN auth.limits l ON l.key = ANY(%(keys)s::text[] || (%(actor_key)s::text || a.id))
                AND l.started_at >= now() - l.window_s * interval '1 second'
        """
        given = {"username_key": username_key, "keys": limit_keys, "actor_key": ACTOR_KEY}
        rows = await db.all(sql, given)
        found = rows[0]
        account = None if found[0] is None else Account(Actor(*found[:8]), found[8], found[9])
        return account, tallies(row[10:] for row in rows if row[10] is not None)

    async def start(
        self, tx: Transaction, verified: Account, session_id: UUID, origin: Origin, idle_s: float, lifetime_s: float
    ) -> Session | None:
        """Store a new session and the activity of its actor. Locks the actor until the transaction ends.

        Returns None if the actor was disabled, or its password or second factor changed, since their verification.
        """
        sql = """
            WITH active AS (
                UPDATE auth.actors a SET last_active_at = now()
                WHERE a.id = %(actor_id)s AND a.is_active AND a.type <> 'service_acc'
                  AND a.password_hash = %(password_hash)s
                  AND %(has_second_factor)s
                      = EXISTS (SELECT FROM auth.totp t WHERE t.actor_id = a.id AND t.confirmed_at IS NOT NULL)
                RETURNING a.id
            )
            INSERT INTO auth.sessions (id, actor_id, rotated_at, idle_expires_at, expires_at, address, user_agent)
            SELECT %(id)s, id, now(), now() + least(%(idle_s)s, %(lifetime_s)s) * interval '1 second',
                   now() + %(lifetime_s)s * interval '1 second', %(address)s, %(agent)s
            FROM active
            RETURNING id, actor_id, refresh_counter, rotated_at, idle_expires_at, expires_at
        """
        given = {
            "id": session_id,
            "actor_id": verified.actor.id,
            "password_hash": verified.password_hash,
            "has_second_factor": verified.has_second_factor,
            "idle_s": idle_s,
            "lifetime_s": lifetime_s,
            "address": origin.address,
            "agent": origin.user_agent,
        }
        row = await tx.one(sql, given)
        return None if row is None else Session(*row)

    async def settle(self, tx: Transaction, actor_id: UUID, keep: int, tried: Try, *, forgiven: str) -> None:
        """Uncount the attempt, reset failures under the forgiven key, and end the least used sessions above `keep`.

        Call it after `start`: the lock on the actor makes the sessions of concurrent sign-ins visible.
        """
        given = {**given_back(tried, forgiven=forgiven), "actor_id": actor_id, "keep": keep}
        await tx.run("WITH " + GIVE_BACK + _END_LEAST_USED, given)
