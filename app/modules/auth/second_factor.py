"""Checks the second factor against what is stored."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from app.kernel.db import Database
from app.modules.auth.domain.second_factor import matching_step, recovery_hash
from app.modules.auth.postgres.second_factors import SecondFactors


@dataclass(frozen=True, slots=True)
class StoredSecondFactor:
    """An authenticator's one-time password, or a recovery code: each works once."""

    db: Database
    factors: SecondFactors

    async def check(self, actor_id: UUID, otp: str | None) -> Literal["none", "required", "good", "bad"]:
        """Return whether the actor has a second factor, and whether this is it; a good one is used up."""
        found = await self.factors.get(self.db, actor_id)
        if found is None or not found.is_confirmed:
            return "none"
        if otp is None:
            return "required"
        step = matching_step(found, otp)
        if step is not None:
            good = await self.factors.use_step(self.db, actor_id, step)
        else:
            good = await self.factors.use_recovery_code(self.db, actor_id, recovery_hash(otp))
        return "good" if good else "bad"
