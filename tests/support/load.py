"""Clients that read and write without a pause, and count what is not answered as it should be."""

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_ANSWER_S = 20.0
_READ_AT_ONCE = ConnectionError, asyncio.IncompleteReadError, OSError, TimeoutError


@dataclass
class Load:
    """Half of the requests read (`GET /auth/v1/me`), half create a role with a name of its own."""

    url: str
    token: str
    answered: int = 0
    created: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)
    """Roles that were asked for."""

    def during(self, action: Callable[[], object], kept: int = 4, fresh: int = 4) -> "Load":
        """Send requests, on kept and on fresh connections, while an action runs in a thread."""
        asyncio.run(self._run(action, kept, fresh))
        return self

    async def _run(self, action: Callable[[], object], kept: int, fresh: int) -> None:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as clients:
            for is_kept in [True] * kept + [False] * fresh:
                clients.create_task(self._client(stop, is_kept=is_kept))
            try:
                await asyncio.to_thread(action)
            finally:
                stop.set()

    async def _client(self, stop: asyncio.Event, *, is_kept: bool) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        number = 0
        while not stop.is_set():
            number += 1
            name = f"r-{uuid.uuid4().hex}" if number % 2 else ""
            try:
                async with asyncio.timeout(_ANSWER_S):
                    if streams is None:
                        parts = urlsplit(self.url)
                        streams = await asyncio.open_connection(parts.hostname, parts.port)
                    ends = await self._request(*streams, name, is_kept=is_kept)
            except _READ_AT_ONCE as error:
                self.failed.append(f"{'POST' if name else 'GET'} {'kept' if is_kept else 'fresh'}: {error!r}")
                ends = True
            if ends and streams is not None:
                streams[1].close()
                streams = None
            await asyncio.sleep(0.005)
        if streams is not None:
            streams[1].close()

    async def _request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, *, is_kept: bool
    ) -> bool:
        """Send one request; return whether the connection is used up."""
        body = json.dumps({"name": name}).encode() if name else b""
        first = "POST /auth/v1/roles" if name else "GET /auth/v1/me"
        lines = [f"{first} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {self.token}"]
        lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"] if name else []
        lines += [] if is_kept else ["Connection: close"]
        self.sent.add(name)
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        status = head.split()[1].decode()
        if status != ("201" if name else "200"):
            self.failed.append(f"{first}: {status}")
        else:
            self.answered += 1
            self.created |= {name} if name else set()
        return not is_kept or b"connection: close" in head
