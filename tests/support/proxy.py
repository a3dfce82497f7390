"""A TCP proxy that behaves as bad networks do."""

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """Forwards connections from a port of its own; from any thread it can be told to delay, hold or lose bytes."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._pass = asyncio.Event()
        self._pass.set()
        self._forgotten: set[asyncio.Task[None]] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.delay_s = 0.0
        self.lost = re.compile(rb"(?!)")
        """What it drops from what it forwards."""
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        serving = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.CancelledError):  # the end, which asyncio's streams would report
            await self._forward(reader, writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await self._pass.wait()
        try:
            far_reader, far_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(far_writer)
        pumps = [asyncio.ensure_future(self._pump(*ends)) for ends in ((reader, far_writer), (far_reader, writer))]
        self._pumps.update(pumps)
        await asyncio.wait(pumps)
        self._pumps.difference_update(pumps)
        for end in (writer, far_writer):
            self._writers.discard(end)
            end.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._target
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65536):
                await asyncio.sleep(self.delay_s)
                await self._pass.wait()
                if asyncio.current_task() in self._forgotten:
                    continue
                writer.write(self.lost.sub(b"", chunk))
                await writer.drain()
            if asyncio.current_task() not in self._forgotten:
                await self._pass.wait()
                writer.close()

    def _do(self, change) -> None:
        self._loop.call_soon_threadsafe(change)

    def hold(self) -> None:
        """Let nothing through: a network that is cut."""
        self._do(self._pass.clear)

    def go_on(self) -> None:
        """Let everything through that was held."""
        self._do(self._pass.set)

    def forget(self) -> None:
        """Lose what is sent on the connections that are open now, without a word to either end; serve new ones."""
        self._do(lambda: self._forgotten.update(self._pumps))

    def stop(self) -> None:
        """End, with everything that is open."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._do(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=5)
        await asyncio.sleep(0)  # the transports close in the next turn


@contextmanager
def proxy_to(host: str, port: int) -> Iterator[Proxy]:
    """Run a proxy meanwhile."""
    proxy = Proxy(host, port)
    try:
        yield proxy
    finally:
        proxy.stop()
