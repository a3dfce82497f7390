"""Ask callers for what they signed in with once more, before they change what protects the account."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.kernel.errors import RateLimited
from app.modules.auth.domain.actors import Actor, Actors, Passwords, username_key
from app.modules.auth.domain.second_factor import InvalidOtp, OtpRequired, SecondFactor
from app.modules.auth.domain.sessions import AuthenticatedCaller, InvalidCredentials, Limits, SessionNotFound
from app.modules.auth.usecases.login import LOCKED_FROM, WINDOW_S, limit_of_name


@dataclass(frozen=True, slots=True)
class Reauthenticate:
    """Check the caller's password; failures count like those of signing in. Part of other use cases."""

    db: Database
    actors: Actors
    passwords: Passwords
    second_factor: SecondFactor
    limits: Limits
    audit: Audit

    async def __call__(self, caller: AuthenticatedCaller, password: str) -> Actor:
        """Return the caller's actor. Raises InvalidCredentials, RateLimited. Safe to repeat."""
        if caller.actor is None:
            raise SessionNotFound
        actor = caller.actor
        failures, ends_in_s = await self.limits.hits(self.db, limit_of_name(actor.username), WINDOW_S)
        if failures >= LOCKED_FROM:
            raise RateLimited("too many wrong passwords; try again later", retry_after_s=ends_in_s)
        found = await self.actors.by_username(self.db, username_key(actor.username))
        if not await self.passwords.verify(password, found[1] if found else None):
            await self._failed(caller, actor)
            raise InvalidCredentials("the current password is wrong")
        return actor

    async def fully(self, caller: AuthenticatedCaller, password: str, otp: str | None) -> Actor:
        """Check the second factor too, if there is one. Raises OtpRequired and InvalidOtp as well."""
        actor = await self(caller, password)
        match await self.second_factor.check(actor.id, otp):
            case "required":
                raise OtpRequired
            case "bad":
                await self._failed(caller, actor)
                raise InvalidOtp
            case _:
                return actor

    async def _failed(self, caller: AuthenticatedCaller, actor: Actor) -> None:
        """Count a failure."""
        await self.limits.hit(self.db, limit_of_name(actor.username), WINDOW_S)
        await self.audit.record(self.db, caller, "auth.reauthenticate", outcome=InvalidCredentials.code)
