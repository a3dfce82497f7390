"""Ask callers for what they signed in with once more, before they change what protects the account."""

from dataclasses import dataclass

from app.kernel.audit import Audit
from app.kernel.db import Database
from app.modules.auth.domain.actors import Actor, username_key
from app.modules.auth.domain.limits import LOCKED_FROM, Limit, check, limit_of_name, undone_unless_decided
from app.modules.auth.domain.second_factor import InvalidOtp, OtpRequired
from app.modules.auth.domain.sessions import AuthenticatedCaller, InvalidCredentials, SessionNotFound
from app.modules.auth.passwords import Passwords
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.second_factor import StoredSecondFactor


@dataclass(frozen=True, slots=True)
class Reauthenticate:
    """Check the caller's password; tries count like those of signing in. Part of other use cases."""

    db: Database
    actors: PostgresActors
    passwords: Passwords
    second_factor: StoredSecondFactor
    limits: Limits
    audit: Audit

    async def __call__(self, caller: AuthenticatedCaller, password: str) -> Actor:
        """Return the caller's actor. Raises InvalidCredentials, RateLimited. Safe to repeat."""
        actor, tried = await self._with_password(caller, password)
        await self.limits.give_back(self.db, tried)
        return actor

    async def fully(self, caller: AuthenticatedCaller, password: str, otp: str | None) -> Actor:
        """Check the second factor too, if there is one. Raises OtpRequired and InvalidOtp as well."""
        actor, tried = await self._with_password(caller, password)
        async with undone_unless_decided(lambda: self.limits.give_back(self.db, tried)):
            second = await self.second_factor.check(actor.id, otp)
        if second == "bad":
            await self._failed(caller, tried)
            raise InvalidOtp
        await self.limits.give_back(self.db, tried)
        if second == "required":
            raise OtpRequired
        return actor

    async def _with_password(self, caller: AuthenticatedCaller, password: str) -> tuple[Actor, list[Limit]]:
        """Return the caller's actor, and the try that is still pending."""
        if caller.actor is None:
            raise SessionNotFound
        actor = caller.actor
        tried = [Limit(limit_of_name(actor.username, actor.id), LOCKED_FROM)]
        check(tried, await self.limits.look(self.db, tried))
        async with self.passwords.turn(caller.origin.limited) as hashing:
            await self.limits.reserve(self.db, tried)
            async with undone_unless_decided(lambda: self.limits.give_back(self.db, tried)):
                found = await self.actors.by_username(self.db, username_key(actor.username))
                fits = await hashing.verify(password, found[1] if found else None)
        if not fits:
            await self._failed(caller, tried)
            raise InvalidCredentials("the current password is wrong")
        return actor, tried

    async def _failed(self, caller: AuthenticatedCaller, tried: list[Limit]) -> None:
        await self.limits.fail(self.db, tried)
        await self.audit.refused(self.db, caller, "auth.reauthenticate", InvalidCredentials.code)
