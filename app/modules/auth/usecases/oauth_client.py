"""Who is the OAuth client?"""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import BasicAuth, Caller
from app.modules.auth.domain.api_keys import parsed
from app.modules.auth.domain.limits import REFUSED_FROM, REFUSED_FROM_ADDRESS, Limit, digest_of, undone_unless_decided
from app.modules.auth.domain.oauth import InvalidClient
from app.modules.auth.domain.sessions import AuthenticatedCaller
from app.modules.auth.postgres.api_keys import PostgresApiKeys
from app.modules.auth.postgres.limits import Limits


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """Find the service account behind a client id and secret. Part of other use cases, so no operation.

    The client id is the account's id or username, the client secret one of its API keys.
    """

    db: Database
    api_keys: PostgresApiKeys
    limits: Limits
    audit: Audit

    async def __call__(self, caller: Caller, given: BasicAuth) -> tuple[AuthenticatedCaller, UUID]:
        """Return the account with the key's permissions, and the key's id. Safe to repeat.

        Raises InvalidClient; RateLimited after too many failures from an address, or for a client from an address: who
        knows the id of a client cannot lock it out from elsewhere.
        """
        by_address = f"oauth:address:{caller.origin.limited}"
        tried = [
            Limit(by_address, REFUSED_FROM_ADDRESS),
            Limit(f"{by_address}:{digest_of(given.username)}", REFUSED_FROM),
        ]
        await self.limits.reserve(self.db, tried)
        key = parsed(given.password)
        async with undone_unless_decided(lambda: self.limits.give_back(self.db, tried)):
            found = None if key is None else await self.api_keys.caller(self.db, *key, caller.origin)
        actor = found.actor if found else None
        if key is None or found is None or actor is None or given.username not in (str(actor.id), actor.username):
            await self.limits.fail(self.db, tried)
            await self.audit.refused(self.db, caller, "auth.oauth_client", InvalidClient.code)
            raise InvalidClient
        await self.limits.give_back(self.db, tried)
        await self.api_keys.touch(self.db, key[0])
        return found, key[0]
