"""Checks of Redis, if there is one."""

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from app.kernel.config import Misconfigured, RedisSettings
from app.kernel.doctor import Check, Finding, NotChecked, warn
from app.kernel.doctor.deployment import Deployment
from app.kernel.product import NAME
from app.kernel.redis.address import Address
from app.kernel.redis.connections import Redis, RedisUnavailable, configured, connected

_ASK_S = 3.0
_OLDEST = (6, 2)


async def server(d: Deployment) -> AsyncIterator[Finding]:
    """Write to the server, and read its version, its limit of memory and its latency."""
    settings = d[RedisSettings]
    try:
        url = settings.url.get_secret_value()
    except Misconfigured as error:
        raise NotChecked(f"redis.url cannot be read: {error}") from error
    if not url:
        raise NotChecked("redis.url is empty, so processes share limits in PostgreSQL and cache alone")
    where = configured(settings)
    try:
        redis = connected(where, settings.ssl_root_cert, _ASK_S)
    except Misconfigured as error:
        yield warn(str(error), error.hint)
        return
    try:
        if why := await redis.probe():
            yield warn(f"Redis at {where} is not used: {why}", _remedy(where, why))
            return
        for finding in await _findings(redis, where, settings):
            yield finding
    finally:
        await redis.close()


async def _findings(redis: Redis, where: Address, settings: RedisSettings) -> list[Finding]:
    found: list[Finding] = []
    started = time.perf_counter()
    await redis.run("GET", f"{NAME}:doctor")
    took_s = time.perf_counter() - started
    if took_s > settings.timeout / 2:
        problem = (
            f"Redis at {where} answers after {took_s * 1000:.0f} ms; redis.timeout is {settings.timeout * 1000:g} ms"
        )
        found.append(warn(problem, f"{_cli(where)} --latency"))
    if where.kind == "cluster":  # each server has its own
        one = connected(replace(where, kind="single", hosts=where.hosts[:1]), settings.ssl_root_cert, _ASK_S)
        try:
            return found + _configured(await _info(one), where)
        finally:
            await one.close()
    return found + _configured(await _info(redis), where)


async def _info(redis: Redis) -> Mapping[str, Any]:
    try:
        return await redis.run("INFO")
    except RedisUnavailable as error:
        raise NotChecked(f"this user may not read its state: {error}") from error


def _configured(info: Mapping[str, Any], where: Address) -> list[Finding]:
    found: list[Finding] = []
    version = str(info.get("valkey_version") or info.get("redis_version", ""))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST:
        found.append(warn(f"Redis {version} is older than {_OLDEST[0]}.{_OLDEST[1]}", "upgrade it"))
    if not info.get("maxmemory"):
        found.append(
            warn(
                "Redis has no limit of memory (maxmemory)",
                f"{_cli(where)} config set maxmemory 256mb  # and in its file",
            )
        )
    elif info.get("maxmemory_policy") == "noeviction":
        fix = f"{_cli(where)} config set maxmemory-policy allkeys-lru  # and in its configuration file"
        found.append(warn("when its memory is full, Redis refuses writes, and processes continue without it", fix))
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        fix = f'{_cli(where)} config set save ""  # nothing in it needs to survive a restart'
        found.append(warn("Redis could not save to its disk, and may refuse writes because of that", fix))
    return found


def _remedy(where: Address, why: str) -> str:
    if "maxmemory" in why:
        return f"{_cli(where)} config set maxmemory-policy allkeys-lru  # or a larger maxmemory"
    if where.kind == "sentinel":
        host, port = where.hosts[0]
        return f"redis-cli -h {host} -p {port} sentinel masters  # then start them, or correct REDIS_URL"
    return f"{_cli(where)} ping  # then start it, or correct REDIS_URL"


def _cli(where: Address) -> str:
    """Return how to ask the server; the password, and the address of a primary, are for a person to add."""
    host, port = ("PRIMARY", 6379) if where.kind == "sentinel" else where.hosts[0]
    options = f"-h {host} -p {port}" + (" --tls" if where.tls else "") + (f" --user {where.user}" if where.user else "")
    return f"redis-cli {options}" + (" --askpass" if where.password else "")


CHECKS = (Check("redis", "network", "Redis is reachable, limited in memory and fast.", server, timeout_s=12),)
