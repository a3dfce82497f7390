"""The check that a caller holds all permissions of the actor that it changes."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.callers import Caller
from app.kernel.db import Queries, Transaction
from app.modules.auth.domain.actors import Actor, ActorNotFound
from app.modules.auth.domain.permissions import check_has_power_over
from app.modules.auth.postgres.actors import Actors
from app.modules.auth.postgres.roles import Roles


@dataclass(frozen=True, slots=True)
class LockedActor:
    """An actor that is locked until the transaction ends."""

    actor: Actor
    is_last_superuser: bool


@dataclass(frozen=True, slots=True)
class Power:
    """Checks that a caller may change an actor, and locks it for the change."""

    actors: Actors
    roles: Roles

    async def over(self, tx: Transaction, caller: Caller, actor_id: UUID) -> LockedActor:
        """Return the actor, locked. Raises ActorNotFound; Denied if it holds permissions that the caller lacks."""
        superusers = await self.actors.superusers(tx)  # locked before the actor to avoid deadlocks
        found = await self.actors.lock(tx, actor_id)
        if found is None:
            raise ActorNotFound
        actor = found[0]
        await self._check(tx, caller, actor)
        return LockedActor(actor, superusers == frozenset({actor.id}))

    async def check(self, db: Queries, caller: Caller, actor_id: UUID) -> Actor:
        """Return the actor, not locked. Raises as `over`."""
        actor = await self.actors.get(db, actor_id)
        await self._check(db, caller, actor)
        return actor

    async def _check(self, db: Queries, caller: Caller, actor: Actor) -> None:
        of_roles, direct = await self.roles.held(db, actor.id)
        check_has_power_over(caller, of_roles | direct, is_superuser=actor.is_superuser)
