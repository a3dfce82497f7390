"""Providers of the auth module. Each imports its libraries when it is opened."""

from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from loguru import logger

from app.kernel.actions.compose import Providers, make
from app.kernel.cache import Invalidations
from app.kernel.config import RedisSettings
from app.kernel.config.settings import BUILT_IN
from app.kernel.console.browser import BrowserSessions
from app.kernel.db import Database
from app.kernel.errors import Unavailable
from app.kernel.http.authenticators import Authenticate
from app.kernel.machine import memory_bytes
from app.kernel.process import Process
from app.kernel.process.needs import uses
from app.modules.auth.callers import TOPIC, Callers
from app.modules.auth.keyring import Keyring
from app.modules.auth.master_secret import Sealer, derive
from app.modules.auth.passwords import Passwords
from app.modules.auth.portal import Names, Portal
from app.modules.auth.postgres.actors import Actors
from app.modules.auth.postgres.limits import Limits
from app.modules.auth.postgres.signing_keys import SigningKeys
from app.modules.auth.settings import AuthSettings, hashes_that_fit
from app.modules.auth.tokens import Tokens


@asynccontextmanager
@uses(AuthSettings, Database)
async def keyring(p: Process) -> AsyncGenerator[Keyring]:
    """Provide the signing keys. If the database is unavailable, they are loaded at their first use."""
    secrets = p.settings[AuthSettings].master_secrets()
    opened = Keyring(await make(p, Database), SigningKeys(), secrets)
    with suppress(Unavailable):
        await opened.open()
    yield opened


@asynccontextmanager
@uses(AuthSettings, Keyring)
async def tokens(p: Process) -> AsyncGenerator[Tokens]:
    """Provide tokens."""
    yield Tokens(await make(p, Keyring), p.settings[AuthSettings])


@asynccontextmanager
async def passwords(p: Process) -> AsyncGenerator[Passwords]:
    """Provide password hashing."""
    settings = p.settings[AuthSettings]
    words = (*settings.password_words, settings.audience)
    concurrency, worker = settings.password_hash_concurrency, p.launch.worker
    if worker and p.settings.sources.get("auth.password_hash_concurrency") == BUILT_IN:
        concurrency = hashes_that_fit(worker.count)  # they share the memory and the cores
    report = logger.debug if p.launch.on_terminal else logger.info
    report("concurrent password hashes: at most {}, with {:.0f} MiB of memory", concurrency, memory_bytes() / 2**20)
    hashing = Passwords(concurrency, words)
    try:
        yield hashing
    finally:
        hashing.close()


@asynccontextmanager
@uses(AuthSettings)
async def sealer(p: Process) -> AsyncGenerator[Sealer]:
    """Provide the encryption of second factors."""
    yield Sealer(p.settings[AuthSettings].master_secrets(), "second factors")


@asynccontextmanager
@uses(AuthSettings, Invalidations, RedisSettings)
async def callers(p: Process) -> AsyncGenerator[Callers]:
    """Provide the remembered callers: those in Redis are believed under a MAC only, as they have permissions."""
    invalidations, shared = await make(p, Invalidations), None
    if p.settings[RedisSettings].url.get_secret_value():
        from app.kernel.cache.shared import SharedCache
        from app.kernel.redis.connections import redis

        mac_key = derive(p.settings[AuthSettings].master_secrets()[0], "callers")
        shared = SharedCache(TOPIC, invalidations, await p.use(redis), mac_key)
    yield Callers(invalidations, shared)


@asynccontextmanager
@uses(Database, Tokens)
async def portal(p: Process) -> AsyncGenerator[Portal]:
    """Provide the portal."""
    from app.modules.auth.authentication import Authentication

    yield await make(p, Authentication)


@asynccontextmanager
@uses(Database)
async def names(p: Process) -> AsyncGenerator[Names]:
    """Provide the names of actors and roles."""
    db = await make(p, Database)

    async def named(ids: Collection[UUID]) -> Mapping[UUID, str]:
        return await Actors().names(db, ids)

    yield named


@asynccontextmanager
@uses(Portal)
async def authenticate(p: Process) -> AsyncGenerator[Authenticate]:
    """Provide the authentication of access tokens and API keys."""
    yield (await make(p, Portal)).authenticate


@asynccontextmanager
@uses(Database, Keyring, Limits, Passwords, Sealer, Tokens)
async def browser_sessions(p: Process) -> AsyncGenerator[BrowserSessions]:
    """Provide the sessions of browsers."""
    from app.modules.auth.browser import BrowserSignIn

    yield await make(p, BrowserSignIn)


@asynccontextmanager
@uses(RedisSettings)
async def limits(p: Process) -> AsyncGenerator[Limits]:
    """Provide the limits: in Redis if there is one, otherwise in PostgreSQL."""
    if not p.settings[RedisSettings].url.get_secret_value():
        yield Limits()
        return
    from app.kernel.redis.connections import redis
    from app.modules.auth.shared_limits import SharedLimits

    yield SharedLimits(await p.use(redis))


PROVIDERS: Providers = {
    Limits: limits,
    Keyring: keyring,
    Tokens: tokens,
    Passwords: passwords,
    Sealer: sealer,
    Callers: callers,
    Portal: portal,
    Names: names,
    Authenticate: authenticate,
    BrowserSessions: browser_sessions,
}
