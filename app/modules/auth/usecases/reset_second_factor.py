"""Turn off the second factor of somebody who has lost it."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.domain.actors import ActorNotFound, username_key
from app.modules.auth.domain.second_factor import NoSecondFactor
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.second_factors import SecondFactors
from app.modules.auth.postgres.sessions import PostgresSessions


@dataclass(frozen=True, slots=True)
class WithoutSecondFactor:
    """Whose second factor was removed, and how many sessions that ended."""

    username: str
    sessions_ended: int


@operation("auth.reset_second_factor", Kind.MANUAL_COMMAND)
@dataclass(frozen=True, slots=True)
class ResetSecondFactor:
    """Remove an actor's authenticator and recovery codes, and end its sessions."""

    db: Database
    actors: PostgresActors
    factors: SecondFactors
    sessions: PostgresSessions
    audit: Audit

    async def __call__(self, caller: Caller, username: str) -> WithoutSecondFactor:
        """Return what was ended. Raises ActorNotFound, NoSecondFactor. Not safe to repeat."""
        async with self.db.begin() as tx:
            found = await self.actors.by_username(tx, username_key(username))
            if found is None:
                raise ActorNotFound(f"there is no actor {username}")
            actor = found[0]
            if not await self.factors.remove(tx, actor.id):
                raise NoSecondFactor(f"{actor.username} has no second factor")
            ended = await self.sessions.end_all(tx, actor.id)
            await self.audit.record(tx, caller, "auth.reset_second_factor", target=actor.id, sessions_ended=ended)
        return WithoutSecondFactor(actor.username, ended)
