"""Providers of the kernel, by type. A provider imports its dependencies when it is opened."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app.kernel.actions.compose import Providers
from app.kernel.cache import ASK_S, CHANNEL, TRUSTED_S, Invalidations
from app.kernel.cache.computed import Cache
from app.kernel.config import PostgresSettings, RedisSettings
from app.kernel.db import Database, Replicas
from app.kernel.db.retention import Partitions
from app.kernel.process import Process
from app.kernel.process.needs import uses
from app.kernel.queue.queues import QueueAdmin
from app.kernel.queue.transport import EventTransport
from app.kernel.sentinel.postgres import Errors


@asynccontextmanager
@uses(PostgresSettings)
async def database(p: Process) -> AsyncGenerator[Database]:
    """Provide the database."""
    from app.kernel.db.postgres import database

    yield await p.use(database)


@asynccontextmanager
@uses(PostgresSettings)
async def replicas(p: Process) -> AsyncGenerator[Replicas | None]:
    """Provide the replicas of the database, to processes that serve; None if there are none."""
    if not p.settings[PostgresSettings].replica_hosts or not p.name.startswith("run-"):
        yield None
        return
    from app.kernel.db.replicas import replicas

    async with replicas(p, await p.use(invalidations)) as found:
        yield found


@asynccontextmanager
@uses(PostgresSettings)
async def invalidations(p: Process) -> AsyncGenerator[Invalidations]:
    """Provide the invalidations of caches: of other processes as they are notified, of this one as it commits."""
    from app.kernel.db.listener import listener
    from app.kernel.db.postgres import database

    db, listening = await p.use(database), await p.use(listener)

    def is_live() -> bool:
        is_fresh = listening.is_live and time.monotonic() - listening.heard_at < TRUSTED_S
        return is_fresh and not listening.has_unread()

    made = Invalidations(is_live)
    db.invalidated = made.received
    with listening.subscribed(CHANNEL, made.received, made.missed, ASK_S):
        yield made


@asynccontextmanager
@uses(Invalidations, RedisSettings)
async def cache(p: Process) -> AsyncGenerator[Cache]:
    """Provide the cache of modules."""
    from app.kernel.cache.computed import TOPIC

    found, shared = await p.use(invalidations), None
    if p.settings[RedisSettings].url.get_secret_value():
        from app.kernel.cache.shared import SharedCache
        from app.kernel.redis.connections import redis

        shared = SharedCache(TOPIC, found, await p.use(redis))
    made = Cache(found, shared)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
@uses(PostgresSettings)
async def partitions(p: Process) -> AsyncGenerator[Partitions]:
    """Provide the partitions of the kernel's tables."""
    from app.kernel.db.partitions import partitions

    yield await p.use(partitions)


@asynccontextmanager
async def events(p: Process) -> AsyncGenerator[EventTransport]:
    """Provide the event transport of publishers, which need the database only."""
    from app.kernel.config import QueueSettings

    if p.settings[QueueSettings].events_transport == "nats":
        from app.kernel.queue.transport.nats.outbox import OutboxEvents

        yield OutboxEvents()
    else:
        from app.kernel.queue.transport.postgres import PostgresEvents

        yield PostgresEvents()


@asynccontextmanager
async def errors(p: Process) -> AsyncGenerator[Errors]:
    """Provide the captured errors."""
    from app.kernel.config import SentinelSettings

    yield Errors(p.settings[SentinelSettings].cooldown)


@asynccontextmanager
async def queue_admin(p: Process) -> AsyncGenerator[QueueAdmin]:
    """Provide the administration of queues."""
    from app.kernel.config import QueueSettings

    yield QueueAdmin(p.settings[QueueSettings].names)


PROVIDERS: Providers = {
    Cache: cache,
    Database: database,
    Replicas: replicas,
    Invalidations: invalidations,
    Partitions: partitions,
    EventTransport: events,
    Errors: errors,
    QueueAdmin: queue_admin,
}
