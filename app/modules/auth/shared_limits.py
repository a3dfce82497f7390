"""Limits in Redis, with the failures in PostgreSQL too.

Redis counts pending and failed attempts atomically, in one round trip. PostgreSQL keeps the failures, so that losing
Redis or what is in it loses none: the next attempt under a key takes the failures over from PostgreSQL.
"""

import json
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.kernel.db import Queries
from app.kernel.product import NAME
from app.kernel.redis.connections import Redis, RedisUnavailable
from app.modules.auth.domain.limits import Limit, Tally, Try, check, too_many_at_once
from app.modules.auth.postgres.limits import Limits

# A hash per key, which expires with its window: `failed`, when that was set, and a field per pending attempt.
# All keys have one hash tag, because a script of a cluster runs on one server.
_PREFIX = f"{NAME}:limits:{{auth}}:"

# A failure that Redis counted more than a minute ago and PostgreSQL does not know was reset there (`app auth unlock`).
_RESERVE = """
local attempt, n = ARGV[1], #KEYS / 2
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local refused, found = 0, {}
for i = 1, n do
    local given = cjson.decode(ARGV[i + 1])
    local state = redis.pcall('HMGET', KEYS[i], 'failed', 'at')
    if state.err then -- not a hash, so not of ours
        redis.call('DEL', KEYS[i])
        state = {}
    end
    local one = {failed = tonumber(state[1] or 0), at = tonumber(state[2] or now), pending = 0, weight = 1,
                 ends = redis.call('PTTL', KEYS[i]), window = given.window}
    if state[1] then
        one.pending = redis.call('HLEN', KEYS[i]) - 2
    end
    if given.failed > one.failed or now - one.at > 60000 then
        one.failed, one.at = given.failed, now
        if one.failed > 0 then one.ends = given.ends end
    end
    if one.failed + one.pending == 0 or one.ends < 1 then
        one.ends = given.window
    end
    if given.noted and redis.call('EXISTS', KEYS[n + i]) == 1 then
        one.weight = 0
    end
    one.noted = given.noted
    local most = given.most
    if one.failed < given.locks then most = given.locks end
    if one.failed + one.pending >= most then refused = 1 end
    found[i] = one
end
local answer = {refused}
for i = 1, n do
    local one = found[i]
    if refused == 0 and one.weight == 1 then
        redis.call('HSET', KEYS[i], 'failed', one.failed, 'at', one.at, attempt, 1)
        redis.call('PEXPIRE', KEYS[i], one.ends)
        if one.noted then
            redis.call('SET', KEYS[n + i], 1, 'PX', one.window)
        end
        one.pending = one.pending + 1
    end
    answer[#answer + 1] = {one.failed, one.pending, one.ends, one.weight}
end
return answer
"""
_FAIL = """
local clock = redis.call('TIME')
for i, key in ipairs(KEYS) do
    redis.call('HDEL', key, ARGV[1])
    redis.call('HINCRBY', key, 'failed', 1)
    redis.call('HSET', key, 'at', clock[1] * 1000 + math.floor(clock[2] / 1000))
    if redis.call('PTTL', key) < 0 then
        redis.call('PEXPIRE', key, ARGV[i + 1])
    end
end
"""
# the last arguments are the number of limits, after which notes follow, and the number of the forgiven one
_GIVE_BACK = """
local n, forgiven = tonumber(ARGV[2]), tonumber(ARGV[3])
for i = 1, n do
    redis.call('HDEL', KEYS[i], ARGV[1])
    if i == forgiven and redis.call('EXISTS', KEYS[i]) == 1 then
        redis.call('HSET', KEYS[i], 'failed', 0)
    end
    if redis.call('HLEN', KEYS[i]) == 2 and redis.call('HGET', KEYS[i], 'failed') == '0' then
        redis.call('DEL', KEYS[i])
    end
end
for i = n + 1, #KEYS do
    redis.call('DEL', KEYS[i])
end
"""
_KEEP = """
for i, key in ipairs(KEYS) do
    if redis.call('EXISTS', key) == 1 then
        redis.call('HSET', key, ARGV[1], 1)
    end
end
"""
_MOST_OWED = 1000
_OWED_AT_ONCE = 3  # by the request that pays


@dataclass(frozen=True, slots=True)
class SharedLimits(Limits):
    """Limits in Redis. While Redis is unavailable, attempts are counted in PostgreSQL."""

    redis: Redis
    owed: deque[Try] = field(default_factory=lambda: deque[Try](maxlen=_MOST_OWED))
    """Attempts that Redis may hold as pending, although they are not."""

    async def reserve(self, db: Queries, limits: Sequence[Limit], known: Mapping[str, Tally] | None = None) -> Try:
        if self.redis.trouble:
            return await Limits.reserve(self, db, limits)
        if known is None:
            known = await self.look(db, limits)
        tried = Try(limits, {}, secrets.token_hex(8))
        try:
            for _ in range(min(len(self.owed), _OWED_AT_ONCE)):
                await self._pay(self.owed.popleft())
            keys = [_key(limit.key) for limit in limits] + [_key(limit.noted_as or limit.key) for limit in limits]
            arguments = [_argument(limit, known.get(limit.key, Tally())) for limit in limits]
            refused, *rows = await self.redis.script(_RESERVE, keys, tried.shared_as, *arguments)
        except BaseException as error:
            self.owed.append(tried)  # it may have been counted
            if isinstance(error, RedisUnavailable):
                return await Limits.reserve(self, db, limits)
            raise
        tallies = {
            limit.key: Tally(failed, pending, max(1, -(-ends // 1000)))
            for limit, (failed, pending, ends, _) in zip(limits, rows, strict=True)
        }
        if refused:
            check(limits, tallies)
            raise too_many_at_once()
        counted = [limit for limit, row in zip(limits, rows, strict=True) if row[-1]]
        return replace(tried, limits=counted, tallies=tallies)

    async def fail(self, db: Queries, tried: Try) -> None:
        if not tried.shared_as:
            await Limits.fail(self, db, tried)
            return
        keys = [_key(limit.key) for limit in tried.limits]
        windows = [_ms(limit.window_s) for limit in tried.limits]
        try:
            if keys:
                await self.redis.script(_FAIL, keys, tried.shared_as, *windows)
        except RedisUnavailable:
            self.owed.append(tried)
        try:
            await self.count_failed(db, tried.limits)
        except BaseException:  # it stays counted as pending, as it does in PostgreSQL
            await self._unless_unavailable(_KEEP, keys, tried.shared_as)
            raise

    async def give_back(self, db: Queries, tried: Try) -> None:
        if not tried.shared_as:
            await Limits.give_back(self, db, tried)
            return
        await self.settled(tried, "")

    async def settled(self, tried: Try, forgiven: str) -> None:
        if tried.shared_as:
            try:
                await self._give_back_shared(tried, forgiven)
            except RedisUnavailable:
                self.owed.append(tried)

    async def forget(self, db: Queries, key: str) -> bool:
        was_above_0 = await Limits.forget(self, db, key)
        await self._unless_unavailable("redis.call('DEL', KEYS[1])", [_key(key)])
        return was_above_0

    async def _pay(self, owed: Try) -> None:
        try:
            await self._give_back_shared(owed)
        except BaseException:
            self.owed.append(owed)
            raise

    async def _give_back_shared(self, tried: Try, forgiven: str = "") -> None:
        keys = [limit.key for limit in tried.limits]
        if forgiven and forgiven not in keys:
            keys.append(forgiven)
        place = keys.index(forgiven) + 1 if forgiven else 0
        notes = [limit.noted_as for limit in tried.limits if limit.noted_as]
        if keys:
            given = [_key(key) for key in (*keys, *notes)]
            await self.redis.script(_GIVE_BACK, given, tried.shared_as, len(keys), place)

    async def _unless_unavailable(self, script: str, keys: list[str], *arguments: Any) -> None:
        try:
            if keys:
                await self.redis.script(script, keys, *arguments)
        except RedisUnavailable:
            return


def _key(key: str) -> str:
    return _PREFIX + key


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _argument(limit: Limit, known: Tally) -> str:
    given = {
        "most": limit.most,
        "locks": limit.locks_from,
        "window": _ms(limit.window_s),
        "noted": bool(limit.once_for),
        "failed": known.failed,
        "ends": known.ends_in_s * 1000,
    }
    return json.dumps(given)
