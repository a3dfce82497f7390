"""Who is the OAuth client?"""

from dataclasses import dataclass
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import BasicAuth, Caller
from app.modules.auth.domain.api_keys import ApiKeys, parsed
from app.modules.auth.domain.oauth import InvalidClient
from app.modules.auth.domain.sessions import AuthenticatedCaller


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """Find the service account behind a client id and secret. Part of other use cases, so no operation.

    The client id is the account's id or username, the client secret one of its API keys.
    """

    db: Database
    api_keys: ApiKeys
    audit: Audit

    async def __call__(self, caller: Caller, given: BasicAuth) -> tuple[AuthenticatedCaller, UUID]:
        """Return the account with the key's permissions, and the key's id. Raises InvalidClient. Safe to repeat."""
        key = parsed(given.password)
        found = None if key is None else await self.api_keys.caller(self.db, *key, caller.origin)
        actor = found.actor if found else None
        if key is None or found is None or actor is None or given.username not in (str(actor.id), actor.username):
            await self.audit.record(self.db, caller, "auth.oauth_client", outcome=InvalidClient.code)
            raise InvalidClient
        await self.api_keys.touch(self.db, key[0])
        return found, key[0]
