"""Commands on real servers of every kind, and what an outage of each costs."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from app.kernel.config import Misconfigured, RedisSettings, load
from app.kernel.redis import patience
from app.kernel.redis.address import address
from app.kernel.redis.connections import Redis, RedisUnavailable, configured, connected
from app.processes import sections
from tests.kernel.redis.conftest import Connect, waited
from tests.support.certificates import Authority
from tests.support.project import ROOT
from tests.support.proxy import proxy_to
from tests.support.valkey import Valkey, cluster, debian_redis, free_port, sentinel

ACL = "user app on >of-sentinel allchannels +@all\nuser default off"
SUM = "return redis.call('INCRBY', KEYS[1], ARGV[1]) + redis.call('DECRBY', KEYS[1], ARGV[1])"


async def until(probe: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not probe():
            await asyncio.sleep(0.01)


async def works(redis: Redis) -> None:
    assert redis.trouble == ""
    for key in "abcdef":
        assert await redis.run("SET", key, f"of {key}", key=key)
        assert await redis.run("GET", key, key=key) == f"of {key}".encode()
    assert await redis.script(SUM, ["{n}:1", "{n}:2"], 5) == 5


async def test_a_user_with_few_rights_signs_in_and_a_wrong_password_is_no_reason_to_end(
    valkey: Valkey, connect: Connect
) -> None:
    valkey.ask("ACL", "SETUSER", "app", "on", ">p@ss/word", "~app:*", "+set", "+get", "+eval")
    redis = await connect(f"redis://app:p%40ss%2Fword@127.0.0.1:{valkey.port}")
    assert await redis.run("SET", "app:a", 1)
    with pytest.raises(RedisUnavailable, match="No permissions"):
        await redis.run("SET", "other", 1)
    wrong = await connect(f"redis://app:another@127.0.0.1:{valkey.port}")
    assert "invalid username-password pair" in wrong.trouble
    assert "another" not in wrong.trouble


async def test_tls_is_checked_against_the_configured_authority(
    started: list[Valkey], connect: Connect, tmp_path: Path
) -> None:
    authority, port = Authority.made_in(tmp_path / "authority"), free_port()
    certificate, key = authority.sign("localhost")
    options = {"port": port, "cert-file": certificate, "key-file": key, "ca-cert-file": authority.file}
    given = [text for name, value in options.items() for text in (f"--tls-{name}", str(value))]
    binary = debian_redis(tmp_path)
    started.append(Valkey(tmp_path / "tls", [*given, "--tls-auth-clients", "no"], binary, port))
    await works(await connect(f"rediss://127.0.0.1:{port}", str(authority.file)))
    assert "certificate verify failed" in (await connect(f"rediss://127.0.0.1:{port}")).trouble
    assert (await connect(f"redis://127.0.0.1:{port}")).trouble
    with pytest.raises(Misconfigured, match=r"redis\.ssl_root_cert: .*no certificate"):
        connected(address("rediss://localhost"), str(key), 0.1)


async def test_a_frozen_server_costs_one_timeout_and_is_used_again_when_it_answers(
    valkey: Valkey, connect: Connect
) -> None:
    redis = await connect(valkey.url, timeout_s=0.5)
    await works(redis)
    valkey.freeze()
    started, before = time.monotonic(), waited()
    answers = await asyncio.gather(*(redis.run("GET", "a") for _ in range(100)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {RedisUnavailable}
    assert 0.5 <= time.monotonic() - started < 5, "they waited one after the other"
    assert waited() == before + 100
    for _ in range(1000):
        with pytest.raises(RedisUnavailable, match="no answer within 500 ms"):
            await redis.run("GET", "a")
    assert waited() == before + 100, "a command waited although an earlier one had failed"
    valkey.thaw()
    await until(lambda: not redis.trouble)
    await works(redis)


async def test_a_full_server_is_not_used_until_it_accepts_writes(valkey: Valkey, connect: Connect) -> None:
    redis = await connect(valkey.url)
    valkey.ask("CONFIG", "SET", "maxmemory", "1mb", "maxmemory-policy", "noeviction")
    with pytest.raises(RedisUnavailable, match="maxmemory"):
        await redis.run("SET", "a", "b")
    await asyncio.sleep(1.2)  # a probe that only reads would succeed
    assert "maxmemory" in redis.trouble
    valkey.ask("CONFIG", "SET", "maxmemory", "0")
    await until(lambda: not redis.trouble)
    await works(redis)


async def test_a_cancelled_command_does_not_leave_its_answer_to_the_next(valkey: Valkey, connect: Connect) -> None:
    redis = await connect(valkey.url)
    for number in range(200):
        await redis.run("SET", f"k{number}", number)
    for number in range(200):
        task = asyncio.ensure_future(redis.run("GET", f"k{number}"))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            assert await task == str(number).encode()
        assert await redis.run("GET", f"k{199 - number}") == str(199 - number).encode()


async def test_the_replica_takes_over_when_sentinel_says_so(
    started: list[Valkey], connect: Connect, tmp_path: Path
) -> None:
    primary = Valkey(tmp_path / "primary")
    started.append(primary)
    replica = Valkey(tmp_path / "replica", ["--replicaof", f"127.0.0.1 {primary.port}"])
    started.append(replica)
    started.append(sentinel(tmp_path / "sentinel", primary))
    redis = await connect(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{started[-1].port}/main")
    await works(redis)
    unknown = await connect(f"redis+sentinel://127.0.0.1:{started[-1].port}/another")
    assert "No master found for 'another'" in unknown.trouble
    primary.kill()
    with pytest.raises(RedisUnavailable):
        await redis.run("GET", "a")
    await until(lambda: not redis.trouble)
    await works(redis)
    assert "master" in str(replica.ask("ROLE"))


@pytest.mark.parametrize(("config", "user"), [("requirepass of-sentinel", ""), (ACL, "app")])
async def test_sentinels_may_require_a_login_of_their_own(
    started: list[Valkey], valkey: Valkey, tmp_path: Path, config: str, user: str
) -> None:
    valkey.ask("CONFIG", "SET", "requirepass", "of-primary")
    valkey.password = "of-primary"
    config += "\nsentinel auth-pass main of-primary"
    started.append(sentinel(tmp_path / "sentinel", valkey, config=config))
    given = {"REDIS_URL": f"redis+sentinel://:of-primary@127.0.0.1:{started[-1].port}/main"}
    login = {"REDIS_SENTINEL_PASSWORD": "of-sentinel"} | ({"REDIS_SENTINEL_USER": user} if user else {})
    for more, is_used in ((login, True), ({}, False), ({"REDIS_SENTINEL_PASSWORD": "wrong"}, False)):
        settings = load(ROOT, sections(), {"APP_ENV": "test", **given, **more})[RedisSettings]
        redis = connected(configured(settings), "system", 1.0)
        why = await redis.probe()
        assert (why == "") == is_used, why
        assert "of-sentinel" not in f"{why}{configured(settings)!r}"
        await redis.close()


async def test_the_commands_of_a_request_wait_for_one_timeout_together(valkey: Valkey, connect: Connect) -> None:
    with proxy_to("127.0.0.1", valkey.port) as network:
        redis = await connect(f"redis://127.0.0.1:{network.port}", timeout_s=1.0)
        await redis.run("GET", "a")
        network.delay_s = 0.3  # in each direction
        for _ in range(2):  # slow, and never late by itself
            patience.begin()
            started, answered = time.monotonic(), 0
            for _ in range(10):
                with suppress(RedisUnavailable):
                    await redis.run("GET", "a")
                    answered += 1
            assert answered == 1
            assert time.monotonic() - started < 1.6
            assert redis.trouble == "", "what others may use was given up"
        valkey.freeze()
        patience.begin()
        with pytest.raises(RedisUnavailable):
            await redis.run("GET", "a")
        assert redis.trouble


async def test_a_key_of_another_type_is_no_reason_to_do_without_redis(valkey: Valkey, connect: Connect) -> None:
    redis = await connect(valkey.url)
    await redis.run("LPUSH", "a", "of another type")
    for ask in (redis.run("GET", "a", key="a"), redis.script("return redis.call('GET', KEYS[1])", ["a"])):
        with pytest.raises(RedisUnavailable, match="WRONGTYPE"):
            await ask
        assert redis.trouble == ""


async def test_a_cluster_is_used_and_one_lost_server_costs_one_timeout(
    started: list[Valkey], connect: Connect, tmp_path: Path
) -> None:
    nodes = cluster(tmp_path, started)
    redis = await connect(f"redis+cluster://127.0.0.1:{nodes[2].port}")
    await works(redis)
    nodes[1].freeze()
    refused, before = 0, waited()
    for key in "abcdefghijkl":
        try:
            await redis.run("GET", key, key=key)
        except RedisUnavailable:
            refused += 1
    assert refused
    assert waited() == before + 1
    await asyncio.sleep(1)
    assert redis.trouble, "the probe asked another server than the lost one"
    nodes[1].thaw()
    await until(lambda: not redis.trouble)
    await works(redis)
