"""Signing keys in `auth.signing_keys`."""

from dataclasses import dataclass
from datetime import datetime

from app.kernel.db import Queries, Transaction


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """Signing keys in `auth.signing_keys`. Private keys are encrypted before they are stored."""

    async def all(self, db: Queries) -> list[tuple[str, bytes, datetime, datetime]]:
        """Return key ids, encrypted private keys, creation times and the current time, newest first."""
        sql = """
            SELECT kid, private_key, created_at, clock_timestamp() FROM auth.signing_keys
            ORDER BY created_at DESC, kid DESC
        """
        return [(kid, bytes(private_key), created_at, at) for kid, private_key, created_at, at in await db.all(sql)]

    async def newest(self, tx: Transaction) -> list[tuple[str, bytes]]:
        """Return the id and the encrypted private key of the newest key, unchanged until the transaction ends."""
        sql = """
            SELECT kid, private_key FROM auth.signing_keys ORDER BY created_at DESC, kid DESC LIMIT 1 FOR SHARE
        """
        return [(kid, bytes(private_key)) for kid, private_key in await tx.all(sql)]

    async def lock(self, tx: Transaction) -> None:
        """Prevent changes of the keys by others until the transaction ends."""
        await tx.run("LOCK TABLE auth.signing_keys IN SHARE ROW EXCLUSIVE MODE")

    async def replace(self, tx: Transaction, kid: str, private_key: bytes) -> None:
        """Store the re-encrypted key."""
        await tx.run("UPDATE auth.signing_keys SET private_key = %s WHERE kid = %s", (private_key, kid))

    async def add(self, tx: Transaction, kid: str, private_key: bytes) -> None:
        """Store a key."""
        sql = "INSERT INTO auth.signing_keys (kid, algorithm, private_key) VALUES (%s, 'ES256', %s)"
        await tx.run(sql, (kid, private_key))

    async def add_first(self, tx: Transaction, kid: str, private_key: bytes) -> None:
        """Store a key if there is none."""
        await self.lock(tx)
        sql = """
            INSERT INTO auth.signing_keys (kid, algorithm, private_key)
            SELECT %s, 'ES256', %s WHERE NOT EXISTS (SELECT FROM auth.signing_keys)
        """
        await tx.run(sql, (kid, private_key))

    async def forget(self, tx: Transaction, before: datetime) -> list[str]:
        """Remove the keys that were replaced before a time; return their ids."""
        sql = """
            DELETE FROM auth.signing_keys
            WHERE kid IN (
                SELECT kid
                FROM (SELECT kid, lead(created_at) OVER (ORDER BY created_at, kid) AS replaced_at
                      FROM auth.signing_keys) keys
                WHERE replaced_at < %s
            )
            RETURNING kid
        """
        return [kid for (kid,) in await tx.all(sql, (before,))]
