"""The link between the supervisor and a worker: JSON lines over a pair of sockets. Both send questions and messages."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

_LONGEST_BYTES = 64 * 1024 * 1024
_CLOSE_S = 1.0

Answer = Callable[[str], Awaitable[Any]]
"""Returns the answer to a question."""
Receive = Callable[[str, Any], None]
"""Receives a message and its value."""


class NoAnswer(Exception):
    """The other end did not answer in time, or has ended."""


class Link:
    """One end of a link."""

    def __init__(self, sock: socket.socket, answer: Answer, receive: Receive) -> None:
        self._sock = sock
        self._answer = answer
        self._receive = receive
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[str, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._has_ended = False

    async def connect(self) -> None:
        """Open this end: from now on `tell` and `ask` send."""
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._sock, limit=_LONGEST_BYTES)

    async def run(self) -> None:
        """Read until the other end closes, or until cancelled. Closes this end."""
        assert self._writer is not None
        try:
            with suppress(ConnectionError):
                while line := await self._reader.readline():
                    self._take(json.loads(line))
        finally:
            self._has_ended = True
            for task in self._answering:
                task.cancel()
            for asked in self._asked.values():
                asked.cancel()
            self._writer.close()
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._writer.wait_closed()

    def tell(self, what: str, value: object = None) -> None:
        """Send a message, which needs no answer. Ignored before the link runs and after it has ended."""
        self._send({"tell": what, "value": value})

    async def ask(self, what: str, timeout_s: float) -> Any:
        """Return the answer to a question. Raises NoAnswer.

        Questions are sent once until they are answered, so that an end which does not answer is not flooded.
        """
        if self._has_ended:
            raise NoAnswer(what)
        if (asked := self._asked.get(what)) is None:
            asked = self._asked[what] = asyncio.get_running_loop().create_future()
            self._send({"ask": what})
        if not (await asyncio.wait({asked}, timeout=timeout_s))[0] or asked.cancelled():
            raise NoAnswer(what)
        return asked.result()

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"ask": what}:
                task = asyncio.get_running_loop().create_task(self._reply(what))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case {"answer": what, "value": value}:
                if (asked := self._asked.pop(what, None)) is not None and not asked.done():
                    asked.set_result(value)
            case {"tell": what, "value": value}:
                self._receive(what, value)
            case _:
                raise ValueError(f"unknown message {message}")

    async def _reply(self, what: str) -> None:
        self._send({"answer": what, "value": await self._answer(what)})

    def _send(self, message: dict[str, object]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")
