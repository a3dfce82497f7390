"""The second factor: an authenticator app and recovery codes.

Actions take the database and commit themselves, because refused attempts are counted.
"""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Len

from app.kernel.actions import Database, Doc, change
from app.kernel.audit import Audit
from app.kernel.errors import RateLimited
from app.modules.auth.authentication import Reauthenticate
from app.modules.auth.domain.limits import limits_of_proof
from app.modules.auth.domain.second_factor import (
    RECOVERY_CODES,
    InvalidOtp,
    NoSecondFactor,
    SecondFactorExists,
    base32,
    matching_step,
    new_recovery_code,
    new_secret,
    otpauth_uri,
    recovery_hash,
)
from app.modules.auth.domain.sessions import AuthenticatedCaller, InvalidCredentials, SessionNotFound
from app.modules.auth.keyring import Keyring
from app.modules.auth.master_secret import Sealer
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.second_factors import SecondFactors
from app.modules.auth.postgres.sessions import Sessions
from app.modules.auth.settings import AuthSettings


@dataclass(frozen=True, slots=True)
class Reauthentication:
    """The caller's password."""

    current_password: Annotated[str, Len(1, 1024), Doc("Current password.", "quiet-meadow-compass")] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PendingTotp:
    """The secret for an authenticator app, as text and as the URI for a QR code. Shown once."""

    secret: str = field(repr=False)
    otpauth_uri: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class FirstOtp:
    """The first one-time password of an authenticator app."""

    otp: Annotated[str, Len(6, 64), Doc("One-time password of the authenticator app.", "492039")] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RecoveryCodes:
    """Codes that replace a one-time password. Each is valid once. Shown once."""

    recovery_codes: list[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class FullReauthentication:
    """The caller's password, and a one-time password or a recovery code."""

    current_password: Annotated[str, Len(1, 1024), Doc("Current password.", "quiet-meadow-compass")] = field(repr=False)
    otp: Annotated[str, Len(6, 64), Doc("One-time password or recovery code.", "492039")] | None = field(
        default=None, repr=False
    )


@dataclass(frozen=True, slots=True)
class SecondFactor:
    """Enable and disable the second factor."""

    factors: SecondFactors
    sealer: Sealer
    keyring: Keyring
    sessions: Sessions
    reauthenticate: Reauthenticate
    limits: Limits
    audit: Audit
    settings: AuthSettings

    @change(
        "auth.start_totp",
        POST="/auth/v1/me/totp",
        raises=(InvalidCredentials, RateLimited, SecondFactorExists, SessionNotFound),
    )
    async def start(self, db: Database, caller: AuthenticatedCaller, given: Reauthentication) -> PendingTotp:
        """Create a secret for an authenticator app. Confirm it to enable it. Safe to repeat until then."""
        actor = await self.reauthenticate.by_password(db, caller, given.current_password)
        secret = new_secret()
        async with db.begin() as tx:
            sealed = self.sealer.seal(secret, str(actor.id), await self.keyring.current(tx))
            if not await self.factors.start(tx, actor.id, sealed):
                raise SecondFactorExists
            await self.sessions.check_still_lives(tx, caller)
            await self.audit.record(tx, caller, "auth.start_totp", target=actor.id)
        return PendingTotp(base32(secret), otpauth_uri(secret, actor.username, self.settings.audience))

    @change(
        "auth.confirm_totp",
        POST="/auth/v1/me/totp/confirm",
        raises=(NoSecondFactor, InvalidOtp, RateLimited, SessionNotFound),
    )
    async def confirm(self, db: Database, caller: AuthenticatedCaller, given: FirstOtp) -> RecoveryCodes:
        """Enable the second factor with a first one-time password. Ends the caller's other sessions.

        Returns the recovery codes. Not safe to repeat.
        """
        actor = caller.actor
        found = await self.factors.get(db, self.sealer, actor.id)
        if found is None or found.is_confirmed:
            raise NoSecondFactor
        tried = await self.limits.reserve(db, limits_of_proof(actor.id))
        step = matching_step(found, given.otp)
        if step is None:
            await self.limits.fail(db, tried)
            await self.audit.refused(db, caller, "auth.confirm_totp", InvalidOtp.code)
            raise InvalidOtp
        await self.limits.give_back(db, tried)
        codes = [new_recovery_code() for _ in range(RECOVERY_CODES)]
        async with db.begin() as tx:
            if not await self.factors.confirm(tx, actor.id, step, [recovery_hash(code) for code in codes]):
                raise NoSecondFactor
            await self.sessions.check_still_lives(tx, caller)
            ended = await self.sessions.end_all(tx, actor.id, but=caller.session_id)
            await self.audit.record(tx, caller, "auth.confirm_totp", target=actor.id, sessions_ended=ended)
        return RecoveryCodes(codes)

    @change(
        "auth.remove_totp",
        DELETE="/auth/v1/me/totp",
        raises=(*Reauthenticate.raises, NoSecondFactor),
    )
    async def remove(self, db: Database, caller: AuthenticatedCaller, given: FullReauthentication) -> None:
        """Remove the caller's authenticator and recovery codes. Ends the caller's other sessions."""
        actor = await self.reauthenticate.fully(db, caller, given.current_password, given.otp)
        async with db.begin() as tx:
            if not await self.factors.remove(tx, actor.id):
                raise NoSecondFactor
            await self.sessions.check_still_lives(tx, caller)
            ended = await self.sessions.end_all(tx, actor.id, but=caller.session_id)
            await self.audit.record(tx, caller, "auth.remove_totp", target=actor.id, sessions_ended=ended)
