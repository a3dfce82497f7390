"""Values in Redis, for the processes of a deployment. Each process decides which of them it uses (ADR 39).

A value carries its tags, and the time at which its loading began, by the clock of Redis. A process that has received an
invalidation asks Redis for its time afterwards, and uses no older value with that tag, whoever stored it and whenever.
So nothing depends on a deletion in Redis, which might be lost, late, or overtaken by a slow writer. Values from before
a process listened are not used either, because it may have missed their invalidation.
"""

import asyncio
import hmac
import json
import random
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass

from pydantic import TypeAdapter

from app.kernel.cache import Invalidations
from app.kernel.product import NAME
from app.kernel.redis.connections import Redis, RedisUnavailable
from app.kernel.telemetry import metrics

LEASE_S = 10.0
"""For as long as a value is being computed, no other process computes it, up to this time."""
MOST_BYTES = 262_144
_EVER = 2**53
_CONTENT = TypeAdapter(tuple[list[str], str])  # tags and body
_MOST_TAGS = 10_000
_AGAIN_S = (0.01, 0.03)

_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local found = redis.pcall('GET', KEYS[1])
if type(found) == 'table' then -- not a text, so not of ours
    redis.call('DEL', KEYS[1])
    found = false
end
local begun = found and #found <= tonumber(ARGV[4]) and string.match(found, '^(%d+) ')
if begun and #begun < 16 and tonumber(begun) > tonumber(ARGV[1]) then
    return {now, found, 0}
end
if redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then
    return {now, false, 1}
end
if type(redis.pcall('GET', KEYS[2])) == 'table' then
    redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
    return {now, false, 1}
end
return {now, false, 0}
"""
_STORE = """
if redis.call('GET', KEYS[2]) == ARGV[1] then
    redis.call('DEL', KEYS[2])
    if ARGV[2] ~= '' then
        redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    end
end
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A value, its tags, and its age in seconds."""

    body: str
    tags: tuple[str, ...]
    age_s: float


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to store a value, whose loading begins after `started`."""

    token: str
    started: int


class SharedCache:
    """Values of a topic in Redis. While Redis is unavailable, it is empty."""

    def __init__(self, topic: str, invalidations: Invalidations, redis: Redis, mac_key: bytes = b"") -> None:
        """With `mac_key`, only values that a holder of the key stored are used."""
        self._topic = topic
        self._redis = redis
        self._mac_key = mac_key
        self._heard = 0
        self._unplaced: dict[str | None, int] = {None: 0}
        """Tags whose invalidation was received after the last answer of Redis, and its number. None: all tags."""
        self._floors: dict[str, int] = {}
        self._floor = 0
        self._counts = metrics.cache_lookups(f"{topic}.redis")
        invalidations.subscribe(topic, self._forget)

    async def take(self, key: str, wait_s: float = 0.0) -> Found | Lease | None:
        """Return a value, or the lease to load it. None: another process loads it, or Redis is unavailable.

        `wait_s` is how long to wait for another process.
        """
        deadline, floor = time.monotonic() + wait_s, _EVER if None in self._unplaced else self._floor
        token = secrets.token_hex(8)
        while not self._redis.trouble:
            heard = self._heard
            try:
                now, text, is_leased = await self._redis.script(
                    _TAKE, self._keys(key), floor, token, int(LEASE_S * 1000), MOST_BYTES
                )
            except RedisUnavailable:
                break
            self._place(heard, now)
            if is_leased:
                self._counts.misses += 1
                return Lease(token, now)
            if text is not None:
                started, found = self._read(key, text, now)
                if found is not None:
                    self._counts.hits += 1
                    return found
                floor = max(started, self._floor)  # to load it again
            elif time.monotonic() >= deadline:
                self._counts.misses += 1
                return None
            else:
                await asyncio.sleep(random.uniform(*_AGAIN_S))  # noqa: S311 - not all at once
        self._counts.bypassed += 1
        return None

    async def store(self, key: str, lease: Lease, body: str, tags: Collection[str], seconds: float) -> None:
        """Store a value for some seconds, unless the lease was lost or the value is large.

        An empty body only ends the lease.
        """
        text = ""
        if body and seconds >= 0.001:
            content = json.dumps([list(tags), body])
            text = f"{lease.started} {self._mac(key, lease.started, content)} {content}"
        if len(text) > MOST_BYTES:
            text = ""
        if not self._redis.trouble:
            try:
                await self._redis.script(_STORE, self._keys(key), lease.token, text, max(1, int(seconds * 1000)))
            except RedisUnavailable:
                return

    def _keys(self, key: str) -> tuple[str, str]:
        name = f"{NAME}:cache:{self._topic}:{{{key}}}"
        return name, f"{name}:lease"

    def _mac(self, key: str, started: int, content: str) -> str:
        if not self._mac_key:
            return "-"
        return hmac.digest(self._mac_key, f"{self._topic} {key} {started} {content}".encode(), "sha256").hex()

    def _read(self, key: str, stored: bytes, now: int) -> tuple[int, Found | None]:
        """Return when the loading of a value began, and the value if it is ours and current."""
        try:
            begun, mac, content = stored.decode().split(" ", 2)
            started = int(begun)
            if not hmac.compare_digest(mac.encode(), self._mac(key, started, content).encode()):
                return started, None
            found = _CONTENT.validate_json(content)
        except ValueError:
            return _EVER, None
        if started > now or not self._is_current(started, found[0]):
            return started, None
        return started, Found(found[1], tuple(found[0]), (now - started) / 1000)

    def _is_current(self, started: int, tags: Collection[str]) -> bool:
        if None in self._unplaced or started <= self._floor:
            return False
        return all(tag not in self._unplaced and started > self._floors.get(tag, 0) for tag in tags)

    def _forget(self, tags: frozenset[str] | None) -> None:
        self._heard += 1
        if tags is None or len(self._unplaced) + len(tags) > _MOST_TAGS:
            self._unplaced = {None: self._heard}
        elif None in self._unplaced:
            self._unplaced[None] = self._heard
        else:
            self._unplaced.update(dict.fromkeys(tags, self._heard))

    def _place(self, heard: int, now: int) -> None:
        """What had been received when Redis was asked invalidates what is older than its answer."""
        for tag, number in list(self._unplaced.items()):
            if number > heard:
                continue
            del self._unplaced[tag]
            if tag is None or len(self._floors) >= _MOST_TAGS:
                self._floor = now
                self._floors.clear()
            else:
                self._floors[tag] = now
