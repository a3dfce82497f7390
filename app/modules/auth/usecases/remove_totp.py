"""Turn off the second factor."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Len

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.modules.auth.domain.second_factor import NoSecondFactor
from app.modules.auth.domain.sessions import AuthenticatedCaller
from app.modules.auth.postgres.second_factors import SecondFactors
from app.modules.auth.postgres.sessions import PostgresSessions
from app.modules.auth.usecases.reauthenticate import Reauthenticate


@dataclass(frozen=True, slots=True)
class FullReauthentication:
    """The caller's password, and a one-time password or a recovery code."""

    current_password: Annotated[str, Len(1, 1024)] = field(repr=False)
    otp: Annotated[str, Len(6, 64)] | None = field(default=None, repr=False)


@operation("auth.remove_totp", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class RemoveTotp:
    """Remove the caller's authenticator and recovery codes."""

    db: Database
    factors: SecondFactors
    sessions: PostgresSessions
    reauthenticate: Reauthenticate
    audit: Audit

    async def __call__(self, caller: AuthenticatedCaller, given: FullReauthentication) -> None:
        """Remove it, and end the caller's other sessions.

        Raises InvalidCredentials, RateLimited, OtpRequired, InvalidOtp, NoSecondFactor, SessionNotFound.
        """
        actor = await self.reauthenticate.fully(caller, given.current_password, given.otp)
        async with self.db.begin() as tx:
            if not await self.factors.remove(tx, actor.id):
                raise NoSecondFactor
            await self.sessions.check_still_lives(tx, caller)
            ended = await self.sessions.end_all(tx, actor.id, but=caller.session_id)
            await self.audit.record(tx, caller, "auth.remove_totp", target=actor.id, sessions_ended=ended)
