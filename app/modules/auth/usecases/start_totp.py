"""Begin to use an authenticator app."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Len

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.modules.auth.domain.second_factor import SecondFactorExists, base32, new_secret, otpauth_uri
from app.modules.auth.domain.sessions import AuthenticatedCaller
from app.modules.auth.postgres.second_factors import SecondFactors
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.usecases.reauthenticate import Reauthenticate


@dataclass(frozen=True, slots=True)
class Reauthentication:
    """The caller's password, once more."""

    current_password: Annotated[str, Len(1, 1024)] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PendingTotp:
    """The secret for the authenticator app, as text and as the address of a QR code. Shown once."""

    secret: str = field(repr=False)
    otpauth_uri: str = field(repr=False)


@operation("auth.start_totp", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class StartTotp:
    """Make a secret for an authenticator app; it counts once a first password of it was confirmed."""

    db: Database
    factors: SecondFactors
    sessions: PostgresSessions
    reauthenticate: Reauthenticate
    audit: Audit
    issuer: str

    async def __call__(self, caller: AuthenticatedCaller, given: Reauthentication) -> PendingTotp:
        """Return the secret. Safe to repeat until confirmed.

        Raises InvalidCredentials, RateLimited, SecondFactorExists, SessionNotFound.
        """
        actor = await self.reauthenticate(caller, given.current_password)
        secret = new_secret()
        async with self.db.begin() as tx:
            if not await self.factors.start(tx, actor.id, secret):
                raise SecondFactorExists
            await self.sessions.check_still_lives(tx, caller)
            await self.audit.record(tx, caller, "auth.start_totp", target=actor.id)
        return PendingTotp(base32(secret), otpauth_uri(secret, actor.username, self.issuer))
