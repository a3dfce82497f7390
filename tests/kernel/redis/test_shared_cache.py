"""Values that processes share in Redis: computed once, and never believed after an invalidation was received."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from app.kernel.cache import Invalidations
from app.kernel.cache.computed import TOPIC, Cache
from app.kernel.cache.shared import MOST_BYTES, Found, Lease, SharedCache
from app.kernel.redis.connections import Redis
from tests.kernel.redis.conftest import Connect, waited
from tests.support.proxy import proxy_to
from tests.support.valkey import Valkey


@dataclass
class Node:
    """A process, as far as caches are concerned."""

    redis: Redis | None
    mac_key: bytes = b""
    is_live: bool = True
    heard: int = 0
    invalidations: Invalidations = field(init=False)
    shared: SharedCache | None = field(init=False)
    cache: Cache = field(init=False)

    def __post_init__(self) -> None:
        self.invalidations = Invalidations(lambda: self.is_live)
        self.shared = SharedCache(TOPIC, self.invalidations, self.redis, self.mac_key) if self.redis else None
        self.cache = Cache(self.invalidations, self.shared)

    def hear(self, *tags: str, topic: str = TOPIC) -> None:
        listed = ", ".join(f'"{tag}"' for tag in tags)
        self.invalidations.received(f'{{"topic": "{topic}", "tags": [{listed}]}}')


Nodes = Callable[..., Awaitable[list[Node]]]


@pytest.fixture
def nodes(valkey: Valkey, connect: Connect) -> Nodes:
    async def made(count: int, timeout_s: float = 0.5, **given: bytes) -> list[Node]:
        return [Node(await connect(valkey.url, timeout_s=timeout_s), **given) for _ in range(count)]

    return made


async def stored(node: Node, key: str, body: str, *tags: str) -> None:
    assert node.shared is not None
    lease = await node.shared.take(key)
    assert isinstance(lease, Lease)
    await node.shared.store(key, lease, body, tags, 60)


async def body(node: Node, key: str) -> str | None:
    assert node.shared is not None
    taken = await node.shared.take(key)
    if isinstance(taken, Lease):
        await node.shared.store(key, taken, "", (), 0)
    return taken.body if isinstance(taken, Found) else None


async def test_a_value_is_believed_until_an_invalidation_of_its_tag_is_received(nodes: Nodes) -> None:
    one, two = await nodes(2)
    for node in (one, two):
        assert await body(node, "warm") is None
    await asyncio.sleep(0.002)
    await stored(one, "k", "v1", "x", "y")
    assert await body(two, "k") == "v1"
    two.hear("another")
    assert await body(two, "k") == "v1"
    two.hear("y")
    assert await body(two, "k") is None
    assert await body(one, "k") == "v1", "it has not received the invalidation yet"
    await asyncio.sleep(0.002)
    await stored(two, "k", "v2", "x", "y")
    assert (await body(one, "k"), await body(two, "k")) == ("v2", "v2")
    one.invalidations.missed()
    assert await body(one, "k") is None


async def test_a_slow_writer_does_not_bring_an_invalidated_value_back(nodes: Nodes) -> None:
    slow, other = await nodes(2)
    await body(other, "warm")
    assert slow.shared
    lease = await slow.shared.take("k")
    assert isinstance(lease, Lease)
    other.hear("x")
    slow.hear("x")
    assert await body(other, "another key") is None  # places the invalidation after the lease
    await slow.shared.store("k", lease, "read before", ("x",), 60)
    assert await body(other, "k") is None
    assert await body(slow, "k") is None


async def test_a_new_process_believes_nothing_from_before_it_listened(nodes: Nodes) -> None:
    [one] = await nodes(1)
    await stored(one, "k", "v", "x")
    [late] = await nodes(1)
    assert await body(late, "k") is None


async def test_a_forged_value_is_not_believed(nodes: Nodes, valkey: Valkey) -> None:
    one, two = await nodes(2, mac_key=b"a secret of the deployment")
    await body(two, "warm")
    await asyncio.sleep(0.002)
    await stored(one, "k", "harmless", "x")
    [name] = [key for key in valkey.ask("KEYS", "app:cache:*") if "{k}" in key]  # type: ignore[attr-defined]
    original = str(valkey.ask("GET", name))
    for forged in (
        original.replace("harmless", "superuser"),
        original.replace('"x"', '"z"'),
        f"{int(original[:13]) + 1}{original[13:]}",
        f"{original[:13]} - {original.split(' ', 2)[2]}",
    ):
        assert forged != original
        valkey.ask("SET", name, forged)
        await asyncio.sleep(0.002)
        assert await body(two, "k") is None, forged
    valkey.ask("SET", name.replace("{k}", "{other}"), original)
    assert await body(two, "other") is None
    valkey.ask("SET", name, original)
    assert await body(two, "k") == "harmless"


@pytest.mark.parametrize("rest", [
    "", "-", "- ", "- {", "- 1", '- "ab"', "- [1, 2]", '- [[1], "v"]', '- [[["x"]], "v"]', '- [{}, "v"]',
    '- [["x"], {}]', '- [["x"], "v", 1]', "- " + "[" * 100_000, f'- [["x"], "{"v" * MOST_BYTES}"]',
    '- [["x"], "\\ud800"]', "\xe9 [[], 1]",
])  # fmt: skip
async def test_a_value_that_is_none_of_ours_is_computed_again(nodes: Nodes, valkey: Valkey, rest: str) -> None:
    [node] = await nodes(1)
    await body(node, "warm")
    now = str(valkey.ask("TIME")[0])  # type: ignore[index]
    for begun in ("", "x", now, f"{now}000", f"{now}000x", "9" * 15, "9" * 30, "9" * 5000, "-1", "1e9"):
        valkey.ask("SET", f"app:cache:{TOPIC}:{{k}}", f"{begun} {rest}")
        assert await body(node, "k") is None, begun[:20]
    assert node.redis is not None
    assert not node.redis.trouble


async def test_a_key_of_another_type_is_written_anew(nodes: Nodes, valkey: Valkey) -> None:
    [node] = await nodes(1)
    await body(node, "warm")
    await asyncio.sleep(0.002)
    for suffix in ("", ":lease"):
        valkey.ask("DEL", f"app:cache:{TOPIC}:{{k}}")
        valkey.ask("LPUSH", f"app:cache:{TOPIC}:{{k}}{suffix}", "of somebody else")
        await stored(node, "k", f"after {suffix}", "x")
        assert await body(node, "k") == f"after {suffix}"
        assert node.redis is not None
        assert not node.redis.trouble


async def test_many_callers_in_many_processes_compute_once(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.kernel.cache.computed._WAIT_S", 60)  # a process that waits for longer computes, too
    monkeypatch.setattr("app.kernel.cache.shared.LEASE_S", 60)
    computed = 0

    async def compute() -> dict[str, int]:
        nonlocal computed
        computed += 1
        await asyncio.sleep(0.2)
        return {"number": computed}

    def asked(found: list[Node]) -> list[Awaitable[dict[str, int]]]:
        return [node.cache.get_or_compute("k", 60, dict[str, int], compute, ["x"]) for node in found * 20]

    found = await nodes(3, timeout_s=60)
    for node in found:
        await body(node, "warm")
    await asyncio.sleep(0.002)  # a process does not use what began in the millisecond in which it asked for the time
    assert await asyncio.gather(*asked(found)) == [{"number": 1}] * 60
    found[0].hear("x")
    assert await asyncio.gather(*asked(found)) == [{"number": 2}, {"number": 1}, {"number": 1}] * 20
    alone = [Node(None) for _ in range(2)]
    computed = 0
    await asyncio.gather(*asked(alone))
    assert computed == 2, "without Redis, once in each process"
    alone[0].is_live = False
    await asyncio.gather(*asked(alone[:1]))
    assert computed == 22, "while invalidations may not arrive, nothing is remembered"


async def test_who_has_waited_for_long_computes_too_and_who_lost_the_lease_stores_nothing(
    nodes: Nodes, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.kernel.cache.computed._WAIT_S", 0.05)
    slow, other, third = await nodes(3, timeout_s=60)
    for node in (slow, other, third):
        await body(node, "warm")
    await asyncio.sleep(0.002)
    lease = f"app:cache:{TOPIC}:{{k}}:lease"
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def compute() -> str:
        begun.set()
        await may_end.wait()
        return "late"

    async def compute_too() -> str:
        return "its own"

    computing = asyncio.ensure_future(slow.cache.get_or_compute("k", 60, str, compute, ["x"]))
    await begun.wait()
    assert 0 < int(str(valkey.ask("PTTL", lease))) <= 10_000
    assert await other.cache.get_or_compute("k", 60, str, compute_too, ["x"]) == "its own"
    assert await body(third, "k") is None, "only who has the lease stores it"
    valkey.ask("DEL", lease)  # as if it had run out
    await stored(other, "k", '"of the next lease"', "x")
    may_end.set()
    assert await computing == "late"
    assert await third.cache.get_or_compute("k", 60, str, compute_too, ["x"]) == "of the next lease"


async def test_an_error_reaches_everyone_who_waits_and_is_not_remembered(nodes: Nodes) -> None:
    for node in [*await nodes(1), Node(None)]:
        attempts = 0

        async def compute() -> int:
            nonlocal attempts
            attempts += 1
            await asyncio.sleep(0.01)
            if attempts == 1:
                raise LookupError("not yet")
            return attempts

        calls = (node.cache.get_or_compute("k", 60, int, compute) for _ in range(5))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(answer) for answer in answers] == ["not yet"] * 5
        assert await node.cache.get_or_compute("k", 60, int, compute) == 2
        leaving = asyncio.ensure_future(node.cache.get_or_compute("other", 60, int, compute))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await node.cache.get_or_compute("other", 60, int, compute) == 3, "who leaves does not cancel it"


async def test_what_a_process_has_heard_of_is_never_answered_with_an_older_value(nodes: Nodes) -> None:
    """Random changes, notifications that arrive late and in different order, and slow readers in three processes."""
    chosen = random.Random(39)
    found = await nodes(3)
    version, checked, computed = 0, 0, 0

    async def notify(node: Node, number: int) -> None:
        await asyncio.sleep(chosen.random() * 0.02)
        node.hear("x")
        node.heard = max(node.heard, number)

    async def change() -> None:
        nonlocal version
        for _ in range(150):
            await asyncio.sleep(chosen.random() * 0.01)
            version += 1
            late.extend(asyncio.ensure_future(notify(node, version)) for node in found)

    async def compute() -> int:
        nonlocal computed
        computed += 1
        await asyncio.sleep(chosen.random() * 0.003)
        read = version
        await asyncio.sleep(chosen.random() * 0.01)
        return read

    async def call(node: Node) -> None:
        nonlocal checked
        heard = node.heard
        assert await node.cache.get_or_compute("k", 60, int, compute, ["x"]) >= heard
        checked += 1

    async def ask(node: Node) -> None:
        async with asyncio.TaskGroup() as calls:
            while not changing.done():
                calls.create_task(call(node))
                await asyncio.sleep(chosen.random() * 0.006)

    late: list[asyncio.Future[None]] = []
    changing = asyncio.ensure_future(change())
    await asyncio.gather(*(ask(node) for node in found))
    await asyncio.gather(*late)
    for node in found:
        assert await node.cache.get_or_compute("k", 60, int, compute, ["x"]) == version
    assert checked > computed


async def test_an_answer_from_before_an_invalidation_does_not_settle_it(
    nodes: Nodes, valkey: Valkey, connect: Connect
) -> None:
    [one] = await nodes(1)
    with proxy_to("127.0.0.1", valkey.port) as network:
        far = Node(await connect(f"redis://127.0.0.1:{network.port}", timeout_s=2))
        await body(far, "warm")
        network.delay_s = 0.2
        answering = asyncio.ensure_future(body(far, "another"))
        await asyncio.sleep(0.3)  # the server has answered, and the answer is on its way
        assert one.shared
        lease = await one.shared.take("k")
        assert isinstance(lease, Lease)
        far.hear("x")
        await answering
        network.delay_s = 0
        await one.shared.store("k", lease, "read before", ("x",), 60)
        assert await body(far, "k") is None


async def test_without_redis_a_process_goes_on_after_one_timeout(nodes: Nodes, valkey: Valkey) -> None:
    [node] = await nodes(1)

    async def compute() -> int:
        return 1

    valkey.freeze()
    before = waited()
    for key in ("a", "b", "c"):
        assert await node.cache.get_or_compute(key, 60, int, compute) == 1
    assert waited() == before + 1
    assert await node.cache.get_or_compute("a", 60, int, compute) == 1
