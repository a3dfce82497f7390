"""See the API keys of a service account."""

from dataclasses import dataclass

from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.kernel.pages import Page
from app.modules.auth.domain.actors import ActorNotFound
from app.modules.auth.domain.api_keys import ApiKey
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.api_keys import PostgresApiKeys
from app.modules.auth.usecases.get_actor import ActorRef


@operation("auth.list_api_keys", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ListApiKeys:
    """List the API keys of a service account, without their secrets."""

    db: Database
    actors: PostgresActors
    api_keys: PostgresApiKeys

    async def __call__(self, actor: ActorRef) -> Page[ApiKey]:
        """Return the keys, newest first. Raises ActorNotFound. Safe to repeat."""
        if await self.actors.get(self.db, actor.id) is None:
            raise ActorNotFound
        return Page(await self.api_keys.of_actor(self.db, actor.id))
