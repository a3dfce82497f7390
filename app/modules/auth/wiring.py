"""Builds the use cases of auth from resources. Imports what a provider needs when it is opened, not before."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.kernel.actions.compose import make
from app.kernel.audit import Audit
from app.kernel.db.postgres import database
from app.kernel.process import Process
from app.kernel.queue.postgres import PostgresQueue
from app.modules.auth.passwords import Passwords
from app.modules.auth.postgres.actors import PostgresActors
from app.modules.auth.postgres.api_keys import PostgresApiKeys
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.sessions import PostgresSessions

if TYPE_CHECKING:
    from app.modules.auth.usecases.create_superuser import CreateSuperuser
    from app.modules.auth.usecases.reset_password import ResetPassword
    from app.modules.auth.usecases.reset_second_factor import ResetSecondFactor
    from app.modules.auth.usecases.unlock import Unlock

AUDIT, QUEUE = Audit(), PostgresQueue()
ACTORS, SESSIONS, LIMITS = PostgresActors(), PostgresSessions(), Limits()
API_KEYS = PostgresApiKeys()


@dataclass(frozen=True, slots=True)
class Recovery:
    """The use cases of operators at a terminal."""

    create_superuser: "CreateSuperuser"
    reset_password: "ResetPassword"
    unlock: "Unlock"


@asynccontextmanager
async def recovery(p: Process) -> AsyncGenerator[Recovery]:
    """Provide the use cases of operators at a terminal."""
    from app.modules.auth.usecases.create_superuser import CreateSuperuser
    from app.modules.auth.usecases.reset_password import ResetPassword
    from app.modules.auth.usecases.unlock import Unlock

    db, hashing = await p.use(database), await make(p, Passwords)
    yield Recovery(
        create_superuser=CreateSuperuser(db, ACTORS, hashing, AUDIT, QUEUE),
        reset_password=ResetPassword(db, ACTORS, SESSIONS, hashing, LIMITS, AUDIT, QUEUE),
        unlock=Unlock(db, ACTORS, LIMITS, AUDIT),
    )


@asynccontextmanager
async def reset_second_factor(p: Process) -> AsyncGenerator["ResetSecondFactor"]:
    """Provide the use case of `auth reset-second-factor`."""
    from app.modules.auth.postgres.second_factors import SecondFactors
    from app.modules.auth.usecases.reset_second_factor import ResetSecondFactor

    factors = await make(p, SecondFactors)
    yield ResetSecondFactor(await p.use(database), ACTORS, factors, SESSIONS, AUDIT)
