"""Connections to Redis.

The commands of a request wait for at most `redis.timeout`, all together. After a failure, commands are refused at once
until a probe in the background succeeds: a circuit breaker. So an outage costs a request one timeout at most.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

from loguru import logger

from app.kernel.config import Misconfigured, RedisSettings
from app.kernel.errors import Unavailable
from app.kernel.process import Process
from app.kernel.process.needs import uses
from app.kernel.product import NAME
from app.kernel.redis import patience
from app.kernel.redis.address import Address, address
from app.kernel.telemetry import metrics

Argument = str | bytes | int | float
MOST_CONNECTIONS = 32
"""Of one process, to each server of a cluster."""
_FIRST_S, _LAST_S = 0.5, 8.0  # between two probes
_SOUND_S = 30.0  # after so long without a failure, the next one is probed soon
_PATIENCE_S = 2.0  # of a probe, for connecting
_KEPT_MS = 1000
_WRONG_TYPE = "WRONGTYPE"


class RedisUnavailable(Unavailable):
    """Redis does not answer in time, or refuses the command. The caller goes on without it."""

    hint = f"{NAME} doctor --only redis"


class Client(Protocol):
    """A client of redis-py: for one server, the primary behind Sentinel, or a cluster."""

    def execute_command(self, *arguments: Argument) -> Awaitable[Any]: ...
    async def aclose(self) -> None: ...


class Redis:
    """Runs commands within a timeout, behind a circuit breaker."""

    def __init__(
        self, client: Client, where: str, timeout_s: float, reset: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """`reset` closes the connections of the client, which opens others, to the current primary."""
        self._client = client
        self._where = where
        self._timeout_s = timeout_s
        self._reset = reset or client.aclose
        self._turns = asyncio.Semaphore(MOST_CONNECTIONS)
        self._lost = asyncio.Event()
        self._lost_at = -_SOUND_S
        self._wait_s = _FIRST_S
        self._tag = ""
        self.trouble = ""
        """Why Redis is not used now; empty when it is."""
        metrics.redis_available(where, True)

    async def run(self, *command: Argument, key: str = "") -> Any:
        """Run a command of one key or of keys with one hash tag; return its answer, text as bytes.

        `key` is a key of the command. Raises RedisUnavailable: at once after an earlier failure.
        """
        if self.trouble:
            raise RedisUnavailable(self.trouble)
        left_s = patience.left_s(self._timeout_s)
        if left_s <= 0:
            raise RedisUnavailable(f"Redis at {self._where}: it took {self._timeout_s * 1000:g} ms of this request")
        operation, outcome, started = str(command[0]).lower(), "failed", time.perf_counter()
        try:
            async with asyncio.timeout(left_s), self._turns:
                answer = await self._client.execute_command(*command)
            outcome = "done"
            return answer
        except TimeoutError as error:
            why = f"no answer within {left_s * 1000:.0f} ms"
            if left_s < self._timeout_s / 2:  # earlier commands were slow, which says little about this one
                raise RedisUnavailable(f"Redis at {self._where}: {why}") from error
            raise self._failed(why, key) from error
        except Exception as error:
            if _WRONG_TYPE in str(error):  # somebody else wrote this key; the others are in order
                logger.warning("Redis at {}: {} of {}", self._where, _text(error), key)
                raise RedisUnavailable(f"Redis at {self._where}: {_text(error)}") from error
            raise self._failed(_text(error), key) from error
        finally:
            took_s = time.perf_counter() - started
            patience.waited(took_s)
            metrics.redis_ended(operation, outcome, took_s)

    async def script(self, source: str, keys: Sequence[str], *arguments: Argument) -> Any:
        """Run a Lua script, atomic on the server. Raises RedisUnavailable."""
        return await self.run("EVAL", source, len(keys), *keys, *arguments, key=keys[0])

    def _failed(self, why: str, key: str) -> RedisUnavailable:
        if not self.trouble:
            now = time.monotonic()
            self._wait_s = _FIRST_S if now - self._lost_at > _SOUND_S else min(2 * self._wait_s, _LAST_S)
            self._lost_at, self._tag = now, _hash_tag(key)
            self.trouble = f"Redis at {self._where}: {why}"
            metrics.redis_available(self._where, False)
            logger.warning("{}; continuing without it", self.trouble)
            self._lost.set()
        return RedisUnavailable(f"Redis at {self._where}: {why}")

    async def open(self) -> None:
        """Connect; when that fails, go on without Redis."""
        if why := await self.probe():
            self._failed(why, "")

    async def watch(self) -> None:
        """Probe Redis while it is unavailable, until cancelled."""
        while True:
            await self._lost.wait()
            await asyncio.sleep(self._wait_s * random.uniform(0.8, 1.2))  # noqa: S311 - not all processes at once
            why = await self.probe()
            if why:
                self.trouble = f"Redis at {self._where}: {why}"
                self._wait_s = min(2 * self._wait_s, _LAST_S)
                continue
            self._lost_at = time.monotonic()
            self._lost.clear()
            self.trouble = ""
            metrics.redis_available(self._where, True)
            logger.info("Redis at {} is available again", self._where)

    async def probe(self) -> str:
        """Return why Redis cannot be used, or an empty text. Writes, which a full server or a replica refuses."""
        probe = ("SET", f"{NAME}:probe:{{{self._tag}}}", 1, "PX", _KEPT_MS)
        limit_s = _PATIENCE_S
        try:
            if self._lost.is_set():
                async with asyncio.timeout(_PATIENCE_S):
                    await self._reset()
            for limit_s in (_PATIENCE_S, self._timeout_s):
                async with asyncio.timeout(limit_s):
                    await self._client.execute_command(*probe)
        except TimeoutError:
            return f"no answer within {limit_s * 1000:g} ms"
        except Exception as error:  # noqa: BLE001 - the client raises many
            return _text(error)
        return ""

    async def close(self) -> None:
        """Close the connections, within a second."""
        with suppress(Exception):
            async with asyncio.timeout(1):
                await self._client.aclose()


def _hash_tag(key: str) -> str:
    """Return the part of a key that decides on its server in a cluster (Redis Cluster specification, hash tags)."""
    _, brace, rest = key.partition("{")
    tag, end, _ = rest.partition("}")
    return tag if brace and end and tag else key


def _text(error: Exception) -> str:
    said = str(error).partition("\n")[0].partition(" : <")[0]  # what follows shows the client
    return said[:200].rstrip(".") or type(error).__name__


@asynccontextmanager
@uses(RedisSettings)
async def redis(p: Process) -> AsyncGenerator[Redis]:
    """Provide Redis. It need not be available. Raises Misconfigured."""
    settings = p.settings[RedisSettings]
    made = connected(configured(settings), settings.ssl_root_cert, settings.timeout)
    await made.open()
    p.degraded["redis"] = lambda: made.trouble
    watching = asyncio.ensure_future(made.watch())
    try:
        yield made
    finally:
        watching.cancel()
        await asyncio.wait({watching}, timeout=1)
        await made.close()


def configured(settings: RedisSettings) -> Address:
    """Return the address that the settings name. Raises ValueError."""
    user, password = settings.sentinel_user, settings.sentinel_password.get_secret_value()
    where = address(settings.url.get_secret_value())
    return replace(where, sentinel_user=user or None, sentinel_password=password or None)


def connected(where: Address, root_cert: str, timeout_s: float) -> Redis:
    """Return the connections to an address, none of which is open yet. Raises Misconfigured."""
    try:
        from app.kernel.redis import client
    except ModuleNotFoundError as error:
        raise Misconfigured("redis.url needs the package redis", hint="pip install 'redis>=8'") from error
    made, reset = client.client(where, root_cert, timeout_s)
    return Redis(made, str(where), timeout_s, reset)
