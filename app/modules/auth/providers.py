"""What auth provides to features. Imports what a provider needs when it is opened, not before."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app.kernel.actions.compose import Providers
from app.kernel.http.authenticators import Authenticate
from app.kernel.process import Process
from app.modules.auth.domain.actors import Passwords
from app.modules.auth.domain.keys import Keys
from app.modules.auth.domain.second_factor import SecondFactors
from app.modules.auth.portal import Portal


@asynccontextmanager
async def portal(p: Process) -> AsyncGenerator[Portal]:
    """Provide the portal."""
    from app.modules.auth import wiring

    yield await p.use(wiring.portal)


@asynccontextmanager
async def passwords(p: Process) -> AsyncGenerator[Passwords]:
    """Provide password hashing."""
    from app.modules.auth import wiring

    yield await p.use(wiring.passwords)


@asynccontextmanager
async def keys(p: Process) -> AsyncGenerator[Keys]:
    """Provide the keyring."""
    from app.modules.auth import wiring

    yield await p.use(wiring.keyring)


@asynccontextmanager
async def second_factors(p: Process) -> AsyncGenerator[SecondFactors]:
    """Provide the second factors that are stored."""
    from app.modules.auth.postgres.second_factors import PostgresSecondFactors
    from app.modules.auth.sealing import Sealer
    from app.modules.auth.settings import AuthSettings

    secret = p.settings[AuthSettings].master_secret.get_secret_value()
    yield PostgresSecondFactors(Sealer(secret, "second factors"))


@asynccontextmanager
async def authenticate(p: Process) -> AsyncGenerator[Authenticate]:
    """Provide what turns access tokens and API keys into callers."""
    yield (await p.use(portal)).authenticate


PROVIDERS: Providers = {
    Portal: portal,
    Authenticate: authenticate,
    Passwords: passwords,
    Keys: keys,
    SecondFactors: second_factors,
}
