"""Hashing is bounded, and off the event loop."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from app.kernel.errors import Unavailable
from app.kernel.http.asgi import Message, Receive, Scope, Send, respond
from app.kernel.http.probes import Probes
from app.kernel.process import Process
from app.modules.auth.passwords import Passwords

CONCURRENCY, PARALLEL, MOST = 2, 100, 200


class Gate:
    """In the place of argon2: each hash takes until it is let go, and it is noted how many there are at once."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.stuck = False
        self._lock = threading.Lock()
        self._go = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)

    def verify(self, password_hash: str, password: str) -> bool:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.arrived.release()
        self.stuck = self.stuck or not self._go.acquire(timeout=20)
        assert not self.stuck, "nobody lets it go: the event loop is blocked"
        with self._lock:
            self.running -= 1
        return True

    async def next_arrived(self) -> None:
        assert await asyncio.to_thread(self.arrived.acquire, timeout=20)

    def let_go(self, count: int) -> None:
        self._go.release(count)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def passwords(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Passwords]:
    made = Passwords(CONCURRENCY, [])
    monkeypatch.setattr(made._hashing, "hasher", gate)
    yield made
    gate.let_go(MOST + 1)
    made.close()


async def verified(passwords: Passwords, address: str = "") -> bool:
    async with passwords.turn(address) as hashing:
        return await hashing.verify("a password", "its hash")


class Named:
    name = "test"


async def status(app: Probes, path: str) -> int:
    """Return what the application answers."""
    statuses: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app({"type": "http", "path": path, "method": "GET", "headers": []}, cast("Receive", None), send)
    return statuses[0]


async def test_health_answers_while_every_sign_in_but_the_bound_waits(gate: Gate, passwords: Passwords) -> None:
    async def login(scope: Scope, receive: Receive, send: Send) -> None:
        fits = await verified(passwords)
        await respond(send, 200 if fits else 401, b"text/plain", b"")

    app = Probes(cast("Process", Named()), login)
    logins = [asyncio.create_task(status(app, "/login")) for _ in range(PARALLEL)]
    for _ in range(CONCURRENCY):
        await gate.next_arrived()
    assert await status(app, "/health") == 200
    assert not any(login.done() for login in logins)
    gate.let_go(1)
    await gate.next_arrived()  # the next one, only now that there is room
    assert await status(app, "/health") == 200
    await asyncio.wait(logins, return_when=asyncio.FIRST_COMPLETED)
    assert sum(login.done() for login in logins) == 1
    gate.let_go(PARALLEL - 1)
    assert await asyncio.gather(*logins) == [200] * PARALLEL
    assert gate.most == CONCURRENCY


async def test_what_waits_is_bounded_too(gate: Gate, passwords: Passwords) -> None:
    waiting = [asyncio.create_task(verified(passwords)) for _ in range(MOST)]
    await gate.next_arrived()
    with pytest.raises(Unavailable):
        await verified(passwords)
    gate.let_go(MOST)
    assert all(await asyncio.gather(*waiting))
    again: Any = asyncio.create_task(verified(passwords))
    gate.let_go(1)
    assert await again
