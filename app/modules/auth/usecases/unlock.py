"""Lift a lock."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.domain.actors import ActorNotFound, username_key
from app.modules.auth.domain.limits import limit_of_name
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.limits import Limits


@operation("auth.unlock", Kind.MANUAL_COMMAND)
@dataclass(frozen=True, slots=True)
class Unlock:
    """Lift the lock that failed sign-ins have put on a name."""

    db: Database
    actors: PostgresActors
    limits: Limits
    audit: Audit

    async def __call__(self, caller: Caller, username: str) -> bool:
        """Return whether there were failures to forget. Raises ActorNotFound. Safe to repeat."""
        async with self.db.begin() as tx:
            found = await self.actors.by_username(tx, username_key(username))
            if found is None:
                raise ActorNotFound(f"there is no actor {username}")
            forgotten = await self.limits.forget(tx, limit_of_name(username, found[0].id))
            await self.audit.record(tx, caller, "auth.unlock", target=found[0].id)
        return forgotten
