"""Checks of NATS: reachable, JetStream enabled, within its limits, and the stream as it is wanted."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from loguru import logger

from app.kernel.config import Misconfigured, NatsSettings, QueueSettings
from app.kernel.doctor import Check, Finding, NotChecked, fail, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.errors import Unavailable
from app.kernel.product import NAME
from app.kernel.queue.transport.nats.connection import Nats, Refused
from app.kernel.queue.transport.nats.stream import Stream, consumer_name, differing

_CONNECT_S = 3.0
_NEARLY_FULL = 0.9
_LATE_S = 60


async def nats(d: Deployment) -> AsyncIterator[Finding]:
    """Report why events cannot be sent through NATS."""
    settings = d[NatsSettings]
    if not settings.url.get_secret_value():
        raise NotChecked("nats.url is empty, so events go through PostgreSQL")
    try:
        connection = Nats(settings, f"{NAME} doctor")
    except Misconfigured as error:
        yield fail(str(error), error.hint)
        return
    async with _running(connection):
        if not connection.connected.is_set():
            why = connection.why or f"no answer within {_CONNECT_S:g} s"
            yield fail(f"NATS at {connection.place} is unreachable: {why}", f"{NAME} config explain nats.url")
            return
        try:
            account = await connection.call("INFO")
        except (Refused, Unavailable) as error:
            yield fail(f"JetStream is not enabled at {connection.place}: {error}", "nats-server --jetstream")
            return
        try:
            for finding in _limits(account, settings):
                yield finding
            async for finding in _stream(connection, settings, d[QueueSettings]):
                yield finding
            async for finding in _consumers(d, connection, settings):
                yield finding
        except Refused as error:
            yield fail(f"NATS at {connection.place}: {error}", f"{NAME} config explain nats.url")
        except Unavailable as error:  # names the address
            yield fail(str(error), f"{NAME} config explain nats.url")


@asynccontextmanager
async def _running(connection: Nats) -> AsyncGenerator[None]:
    logger.disable(Nats.__module__)  # the finding says it
    running = asyncio.ensure_future(connection.run())
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                await connection.connected.wait()
        yield
    finally:
        running.cancel()
        await asyncio.wait({running}, timeout=1)
        logger.enable(Nats.__module__)


async def _stream(connection: Nats, settings: NatsSettings, queue: QueueSettings) -> AsyncIterator[Finding]:
    stream = Stream(connection, settings, queue.lease)
    found = await stream.info()
    if settings.replicas > 1 and not connection.is_clustered:
        problem = f"nats.replicas is {settings.replicas}, but the server is in no cluster, so it refuses the stream"
        yield fail(problem, "export NATS_REPLICAS=1  # or NATS_URL of a cluster")
        return
    if found is None:
        yield warn(f"there is no stream {settings.stream} yet", f"{NAME} run-event-consumer  # which creates it")
        return
    if changed := differing(found["config"], stream.wanted()):
        problem = f"the stream {settings.stream} differs from the settings in {', '.join(changed)}"
        yield warn(problem, f"{NAME} run-event-consumer  # which changes it; retention cannot be changed")
    cluster: dict[str, Any] = found.get("cluster") or {}
    replicas: list[dict[str, Any]] = cluster.get("replicas") or []
    behind = [replica["name"] for replica in replicas if not replica.get("current")]
    if behind or (settings.replicas > 1 and not cluster.get("leader")):
        names = ", ".join(behind) or "all of them"
        yield warn(f"copies of the stream {settings.stream} are not up to date: {names}", "nats-server --signal reload")
    left = found["state"]["messages"]
    if left and queue.events_transport == "postgres":
        problem = f"{left} events are still in NATS: keep nats.url until consumers have handled them"
        yield fail(problem, f"{NAME} run-event-consumer")
    stored, most = found["state"]["bytes"], found["config"].get("max_bytes", -1)
    if most > 0 and stored > most * _NEARLY_FULL:
        yield fail(
            f"the stream {settings.stream} has {stored} of {most} bytes; new events wait in the database",
            f"{NAME} run-event-consumer  # or a larger NATS_MAX_BYTES",
        )


async def _consumers(d: Deployment, connection: Nats, settings: NatsSettings) -> AsyncIterator[Finding]:
    try:
        rows = await d.all("SELECT subscriber FROM kernel.subscriptions ORDER BY 1")
    except NotChecked:  # another check reports it
        return
    stream = Stream(connection, settings, d[QueueSettings].lease)
    made = set(await stream.consumers()) if await stream.info() else set[str]()
    missing = [subscriber for (subscriber,) in rows if consumer_name(subscriber) not in made]
    if missing and made:
        problem = (
            f"{len(missing)} subscriptions have no consumer in NATS, such as {missing[0]}: events do not reach them"
        )
        yield fail(problem, f"{NAME} run-event-consumer  # whose relay makes them within a minute")


def _limits(account: dict[str, Any], settings: NatsSettings) -> list[Finding]:
    limits: dict[str, Any] = account.get("limits") or {}
    used: int = account.get("storage", 0)
    most: int = limits.get("max_storage", -1)
    findings: list[Finding] = []
    if most >= 0 and settings.max_bytes * settings.replicas > most:
        findings.append(
            fail(f"nats.max_bytes exceeds the account's limit of {most} bytes", f"export NATS_MAX_BYTES={most}")
        )
    if most > 0 and used > most * _NEARLY_FULL:
        findings.append(warn(f"the account has used {used} of {most} bytes of storage", "export NATS_MAX_BYTES=0"))
    if limits.get("max_bytes_required") and not settings.max_bytes:
        findings.append(fail("the account requires a limit of the stream", "export NATS_MAX_BYTES=1073741824"))
    return findings


async def outbox(d: Deployment) -> AsyncIterator[Finding]:
    """Report events that no relay sends."""
    late = """
        SELECT count(*), coalesce(extract(epoch FROM now() - min(published_at)), 0)::float8 FROM kernel.event_outbox
    """
    count, since_s = await d.one(late)
    if not count:
        return
    if not d[NatsSettings].url.get_secret_value():
        problem = f"{count} events wait to be sent to NATS, but nats.url is empty"
        yield fail(problem, "export NATS_URL=nats://HOST:4222  # until they are sent")
    elif since_s > _LATE_S:
        problem = f"{count} events wait to be sent to NATS, the oldest for {since_s:.0f} s"
        yield fail(problem, f"{NAME} doctor --only nats --only processes")


CHECKS = (
    Check("nats", "nats", "NATS answers, and its stream is as it should be.", nats),
    Check("outbox", "nats", "Events are sent to NATS in time.", outbox, quick=True, runbook="EventsDelayed"),
)
