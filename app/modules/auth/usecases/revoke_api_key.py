"""Take an API key away."""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Caller, Kind, operation
from app.modules.auth.domain.api_keys import ApiKeyNotFound
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.api_keys import PostgresApiKeys
from app.modules.auth.postgres.roles import PostgresRoles
from app.modules.auth.usecases.update_actor import locked_under_power


@dataclass(frozen=True, slots=True)
class ApiKeyRef:
    """A key of an account."""

    id: UUID
    key_id: UUID


@operation("auth.revoke_api_key", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class RevokeApiKey:
    """Make an API key useless, at once and everywhere."""

    db: Database
    actors: PostgresActors
    roles: PostgresRoles
    api_keys: PostgresApiKeys
    audit: Audit

    async def __call__(self, caller: Caller, key: ApiKeyRef) -> None:
        """Remove it. Raises ActorNotFound, Denied, ApiKeyNotFound."""
        async with self.db.begin() as tx:
            actor, _ = await locked_under_power(tx, caller, key.id, self.actors, self.roles)
            if not await self.api_keys.remove(tx, actor.id, key.key_id):
                raise ApiKeyNotFound
            await self.audit.record(tx, caller, "auth.revoke_api_key", target=actor.id, key=str(key.key_id))
