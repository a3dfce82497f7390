"""An application of a test's own behind the server and the middlewares that every process has, over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.kernel.config import load
from app.kernel.http.asgi import App
from app.kernel.http.server import http_service
from app.kernel.process import Process
from app.kernel.sockets import bind
from app.processes import sections
from tests.support.project import ROOT


@dataclass
class Serving:
    """A server in the loop of the test."""

    process: Process
    host: str
    port: int
    running: "asyncio.Task[None]"
    stop: asyncio.Event

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port)

    async def ask(self, raw: bytes) -> bytes:
        """Send raw bytes on a connection of its own; return what comes until the server closes it."""
        reader, writer = await self.connect()
        try:
            writer.write(raw)
            async with asyncio.timeout(10):
                return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def serving(app: App, **env: str) -> AsyncIterator[Serving]:
    """Serve an application under settings of the environment; what is left at the end is cancelled."""
    process = Process("test", load(ROOT, sections(), {"APP_ENV": "test", **env}), ROOT)
    sock = bind("127.0.0.1", 0)
    host, port = sock.getsockname()
    service = http_service(process, app, sock, "http")
    stop = asyncio.Event()
    running = asyncio.ensure_future(service(stop))
    process.state = "ready"
    try:
        yield Serving(process, host, port, running, stop)
    finally:
        running.cancel()
        await asyncio.wait({running})
