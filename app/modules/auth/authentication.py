"""Authentication of tokens, passwords and second factors."""

from dataclasses import dataclass
from typing import ClassVar, Literal
from uuid import UUID

from app.kernel.audit import Audit
from app.kernel.callers import Origin
from app.kernel.db import Database
from app.kernel.errors import RateLimited
from app.modules.auth.callers import Callers
from app.modules.auth.domain.actors import Actor, username_key
from app.modules.auth.domain.api_keys import PREFIX, parsed
from app.modules.auth.domain.limits import Try, check, limits_of_proof
from app.modules.auth.domain.second_factor import InvalidOtp, OtpRequired, matching_step, recovery_hash
from app.modules.auth.domain.sessions import (
    AuthenticatedCaller,
    Claims,
    InvalidCredentials,
    InvalidToken,
    SessionNotFound,
)
from app.modules.auth.master_secret import Sealer
from app.modules.auth.passwords import Passwords
from app.modules.auth.postgres.actors import Actors
from app.modules.auth.postgres.api_keys import ApiKeys
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.second_factors import SecondFactors
from app.modules.auth.postgres.sessions import Sessions
from app.modules.auth.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Authentication:
    """Authenticates access tokens and API keys, in every request. Implements the portal."""

    db: Database
    sessions: Sessions
    api_keys: ApiKeys
    tokens: Tokens
    callers: Callers

    async def authenticate(self, token: str, origin: Origin) -> AuthenticatedCaller:
        """Return the caller with current permissions. Raises InvalidToken, TokenExpired, SessionNotFound."""
        if token.startswith(PREFIX):
            return (await self._of_key(token)).at(origin)
        claims = await self.tokens.claims(token)
        caller = self.callers.get(claims.session_id)
        if caller is None or caller.actor_id != claims.actor_id:
            caller = await self._of_session(claims)
        return caller.at(origin)

    async def _of_session(self, claims: Claims) -> AuthenticatedCaller:
        name = f"session:{claims.session_id}:{claims.actor_id}"
        found = await self.callers.load(claims.session_id, name, lambda: self.sessions.caller(self.db, claims))
        if found is None:
            raise SessionNotFound
        if found.fresh_s <= 0:
            await self.sessions.touch(self.db, found.caller.actor.id)
        return found.caller

    async def _of_key(self, token: str) -> AuthenticatedCaller:
        key = parsed(token)
        if key is None:
            raise InvalidToken("the API key is not valid")
        if (caller := self.callers.get(key)) is not None:
            return caller
        name = f"key:{key[0]}:{key[1].hex()}"
        found = await self.callers.load(key, name, lambda: self.api_keys.caller(self.db, *key))
        if found is None:
            raise InvalidToken("the API key is not valid")
        if found.fresh_s <= 0:
            await self.api_keys.touch(self.db, key[0])
        return found.caller


@dataclass(frozen=True, slots=True)
class SecondFactorCheck:
    """Checks one-time passwords and recovery codes. Each is valid once."""

    factors: SecondFactors
    sealer: Sealer

    async def __call__(
        self, db: Database, actor_id: UUID, otp: str | None
    ) -> Literal["none", "required", "good", "bad"]:
        """Return whether the actor needs a second factor and whether `otp` is valid. Marks a valid one as used."""
        found = await self.factors.get(db, self.sealer, actor_id)
        if found is None or not found.is_confirmed:
            return "none"
        if otp is None:
            return "required"
        step = matching_step(found, otp)
        if step is not None:
            good = await self.factors.use_step(db, actor_id, step)
        else:
            good = await self.factors.use_recovery_code(db, actor_id, recovery_hash(otp))
        return "good" if good else "bad"


@dataclass(frozen=True, slots=True)
class Reauthenticate:
    """Checks the caller's password before security settings change. Attempts count towards the limits of sign-in."""

    raises: ClassVar = (InvalidCredentials, RateLimited, OtpRequired, InvalidOtp, SessionNotFound)

    actors: Actors
    passwords: Passwords
    second_factor: SecondFactorCheck
    limits: Limits
    audit: Audit

    async def by_password(self, db: Database, caller: AuthenticatedCaller, password: str) -> Actor:
        """Return the caller's actor. Raises InvalidCredentials, RateLimited. Safe to repeat."""
        tried = await self._with_password(db, caller, password)
        await self.limits.give_back(db, tried)
        return caller.actor

    async def fully(self, db: Database, caller: AuthenticatedCaller, password: str, otp: str | None) -> Actor:
        """Check the second factor too, if the actor has one. Also raises OtpRequired, InvalidOtp."""
        tried = await self._with_password(db, caller, password)
        async with self.limits.undone_unless_decided(db, tried):
            second = await self.second_factor(db, caller.actor.id, otp)
        if second == "bad":
            await self._failed(db, caller, tried)
            raise InvalidOtp
        await self.limits.give_back(db, tried)
        if second == "required":
            raise OtpRequired
        return caller.actor

    async def _with_password(self, db: Database, caller: AuthenticatedCaller, password: str) -> Try:
        """Return the pending attempt. Raises InvalidCredentials, RateLimited."""
        actor = caller.actor
        limits = limits_of_proof(actor.id)
        known = await self.limits.look(db, limits)
        check(limits, known)
        async with self.passwords.turn(caller.origin.limited) as hashing:
            tried = await self.limits.reserve(db, limits, known)
            async with self.limits.undone_unless_decided(db, tried):
                found = await self.actors.by_username(db, username_key(actor.username))
                fits = await hashing.verify(password, found[1] if found else None)
        if not fits:
            await self._failed(db, caller, tried)
            raise InvalidCredentials("the current password is wrong")
        return tried

    async def _failed(self, db: Database, caller: AuthenticatedCaller, tried: Try) -> None:
        await self.limits.fail(db, tried)
        await self.audit.refused(db, caller, "auth.reauthenticate", InvalidCredentials.code)
