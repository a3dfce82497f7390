"""Second factors in `auth.totp` and `auth.recovery_codes`."""

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from app.kernel.db import Queries, Transaction
from app.modules.auth.domain.second_factor import Totp
from app.modules.auth.master_secret import CannotDecrypt, Sealer


class RewrappedBatch(NamedTuple):
    """Number of re-encrypted secrets, the actors of unreadable ones, and the last actor, if any."""

    changed: int
    unreadable: list[UUID]
    last: UUID | None


@dataclass(frozen=True, slots=True)
class SecondFactors:
    """Second factors in `auth.totp` and `auth.recovery_codes`."""

    async def get(self, db: Queries, sealer: Sealer, actor_id: UUID) -> Totp | None:
        """Return the authenticator of an actor, confirmed or not."""
        sql = "SELECT secret, confirmed_at IS NOT NULL, last_step, now() FROM auth.totp WHERE actor_id = %s"
        row = await db.one(sql, (actor_id,))
        return None if row is None else Totp(sealer.open(bytes(row[0]), str(actor_id)), *row[1:])

    async def start(self, tx: Transaction, actor_id: UUID, sealed: bytes) -> bool:
        """Store or replace an unconfirmed authenticator; return False if there is a confirmed one."""
        sql = """
            INSERT INTO auth.totp AS t (actor_id, secret) VALUES (%s, %s)
            ON CONFLICT (actor_id) DO UPDATE SET secret = excluded.secret, created_at = now()
            WHERE t.confirmed_at IS NULL
        """
        return await tx.run(sql, (actor_id, sealed)) == 1

    async def rewrap(self, tx: Transaction, sealer: Sealer, after: UUID, limit: int) -> RewrappedBatch:
        """Encrypt the secrets of the next actors under the new master secret. Safe to repeat."""
        sql = "SELECT actor_id, secret FROM auth.totp WHERE actor_id > %s ORDER BY actor_id LIMIT %s FOR UPDATE"
        changed: dict[UUID, bytes] = {}
        unreadable: list[UUID] = []
        last = None
        for last, sealed in await tx.all(sql, (after, limit)):
            try:
                if (resealed := sealer.resealed(bytes(sealed), str(last))) is not None:
                    changed[last] = resealed
            except CannotDecrypt:
                unreadable.append(last)
        sql = """
            UPDATE auth.totp t SET secret = new.secret FROM unnest(%s::uuid[], %s::bytea[]) AS new (actor_id, secret)
            WHERE t.actor_id = new.actor_id
        """
        if changed:
            await tx.run(sql, ([*changed], [*changed.values()]))
        return RewrappedBatch(len(changed), unreadable, last)

    async def confirm(self, tx: Transaction, actor_id: UUID, step: int, recovery_hashes: list[bytes]) -> bool:
        """Confirm the authenticator and store recovery codes; return False if it is already confirmed."""
        sql = "UPDATE auth.totp SET confirmed_at = now(), last_step = %s WHERE actor_id = %s AND confirmed_at IS NULL"
        if await tx.run(sql, (step, actor_id)) == 0:
            return False
        sql = "INSERT INTO auth.recovery_codes (actor_id, code_hash) SELECT %s, unnest(%s::bytea[])"
        await tx.run(sql, (actor_id, recovery_hashes))
        return True

    async def use_step(self, db: Queries, actor_id: UUID, step: int) -> bool:
        """Store the last used step; return False if that step or a later one was used before."""
        sql = "UPDATE auth.totp SET last_step = %(step)s WHERE actor_id = %(id)s AND last_step < %(step)s"
        return await db.run(sql, {"id": actor_id, "step": step}) == 1

    async def use_recovery_code(self, db: Queries, actor_id: UUID, code_hash: bytes) -> bool:
        """Remove a recovery code; return whether it existed."""
        sql = "DELETE FROM auth.recovery_codes WHERE actor_id = %s AND code_hash = %s"
        return await db.run(sql, (actor_id, code_hash)) == 1

    async def remove(self, tx: Transaction, actor_id: UUID) -> bool:
        """Remove the authenticator and recovery codes of an actor; return whether they existed."""
        return await tx.run("DELETE FROM auth.totp WHERE actor_id = %s", (actor_id,)) == 1
