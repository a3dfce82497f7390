"""The service that reports its process to the registry."""

import asyncio
import os
import socket
from contextlib import suppress

from app.kernel.db.postgres import database
from app.kernel.errors import Unavailable
from app.kernel.identifiers import uuid7
from app.kernel.process import Process, Service, pause
from app.kernel.product import VERSION
from app.kernel.registry import REPORT_EVERY_S, LiveProcess, Registry


async def reporter(p: Process) -> Service:
    """Return the service; it reports through the drain until the end. An outage is what /ready and requests tell."""
    registry = Registry(await p.use(database))
    identifier, host, pid = uuid7(), socket.gethostname(), os.getpid()

    def now() -> LiveProcess:
        services = list(p.services)
        return LiveProcess(identifier, p.name, VERSION, host, pid, p.state, services, p.started_at, p.started_at)

    async def run(stop: asyncio.Event) -> None:
        stopping = False
        while not stopping:
            with suppress(Unavailable):
                await registry.report(now())
            stopping = await pause(stop, REPORT_EVERY_S)
        with suppress(Unavailable):
            await registry.forget(identifier)

    return Service("reporter", run, outlives=True)
