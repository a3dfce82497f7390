"""Turn on the second factor."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Len

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.operations import Kind, operation
from app.modules.auth.domain.limits import LOCKED_FROM, Limit, limit_of_name
from app.modules.auth.domain.second_factor import (
    RECOVERY_CODES,
    InvalidOtp,
    NoSecondFactor,
    matching_step,
    new_recovery_code,
    recovery_hash,
)
from app.modules.auth.domain.sessions import AuthenticatedCaller, SessionNotFound
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.second_factors import SecondFactors
from app.modules.auth.postgres.sessions import PostgresSessions


@dataclass(frozen=True, slots=True)
class FirstOtp:
    """The first one-time password of the authenticator app."""

    otp: Annotated[str, Len(6, 64)] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RecoveryCodes:
    """Codes that work once each in place of the authenticator. Shown once."""

    recovery_codes: list[str] = field(repr=False)


@operation("auth.confirm_totp", Kind.USER_ACTION)
@dataclass(frozen=True, slots=True)
class ConfirmTotp:
    """Turn on the second factor, with a one-time password that proves the app has the secret."""

    db: Database
    factors: SecondFactors
    sessions: PostgresSessions
    limits: Limits
    audit: Audit

    async def __call__(self, caller: AuthenticatedCaller, given: FirstOtp) -> RecoveryCodes:
        """Return the recovery codes, and end the caller's other sessions. Not safe to repeat.

        Raises NoSecondFactor, InvalidOtp, RateLimited, SessionNotFound.
        """
        if caller.actor is None:
            raise SessionNotFound
        found = await self.factors.get(self.db, caller.actor.id)
        if found is None or found.is_confirmed:
            raise NoSecondFactor
        tried = [Limit(limit_of_name(caller.actor.username, caller.actor.id), LOCKED_FROM)]
        await self.limits.reserve(self.db, tried)
        step = matching_step(found, given.otp)
        if step is None:
            await self.limits.fail(self.db, tried)
            await self.audit.refused(self.db, caller, "auth.confirm_totp", InvalidOtp.code)
            raise InvalidOtp
        await self.limits.give_back(self.db, tried)
        codes = [new_recovery_code() for _ in range(RECOVERY_CODES)]
        async with self.db.begin() as tx:
            if not await self.factors.confirm(tx, caller.actor.id, step, [recovery_hash(code) for code in codes]):
                raise NoSecondFactor
            await self.sessions.check_still_lives(tx, caller)
            ended = await self.sessions.end_all(tx, caller.actor.id, but=caller.session_id)
            await self.audit.record(tx, caller, "auth.confirm_totp", target=caller.actor.id, sessions_ended=ended)
        return RecoveryCodes(codes)
