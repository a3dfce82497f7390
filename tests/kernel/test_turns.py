"""Turns are shared fairly, bounded, and never lost."""

import asyncio
import random
from collections import Counter

import pytest

from app.kernel.concurrency import Turns
from app.kernel.errors import RateLimited, Unavailable


class Work:
    """Work that takes until it is let go, in the order in which it began."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[str] = []
        self.going: list[asyncio.Event] = []
        self.most = 0

    async def do(self, group: str) -> None:
        async with self.turns.turn(group):
            going = asyncio.Event()
            self.begun.append(group)
            self.going.append(going)
            self.most = max(self.most, len(self.going))
            await going.wait()

    async def let_go(self) -> None:
        self.going.pop(0).set()
        await settled()

    async def start(self, group: str, number: int = 1) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.do(group)) for _ in range(number)]
        await settled()
        return tasks


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_crowd_of_one_group_delays_another_by_one_turn_only() -> None:
    work = Work(Turns(2, most=200, most_of_group=100, longest_s=60))
    crowd = await work.start("crowd", 50)
    await work.let_go()
    await work.start("one")
    for _ in range(2):
        await work.let_go()
    assert "one" in work.begun[-2:]
    while work.going:
        await work.let_go()
    assert Counter(work.begun) == {"crowd": 50, "one": 1}
    assert work.most == 2
    assert all(task.done() for task in crowd)


async def test_many_groups_that_wait_delay_a_new_one_by_two_turns_and_none_of_them_starves() -> None:
    work = Work(Turns(1, most=200, most_of_group=100, longest_s=60))
    for number in range(20):
        await work.start(f"group {number}", 4)
    for _ in range(40):
        await work.let_go()  # by now each of them has been served
    for number in range(10):
        await work.start(f"new {number}")
        await work.let_go()
        await work.let_go()
        assert f"new {number}" in work.begun[-2:]
    while work.going:
        await work.let_go()
    assert Counter(work.begun) == {f"group {n}": 4 for n in range(20)} | {f"new {n}": 1 for n in range(10)}


async def test_a_group_is_bounded_and_so_are_all_together() -> None:
    work = Work(Turns(1, most=10, most_of_group=4, longest_s=60))
    crowd = await work.start("a", 5)  # one works
    with pytest.raises(RateLimited) as refused:
        await work.do("a")
    assert refused.value.retry_after_s > 0
    waiting = [*await work.start("b", 4), *await work.start("c"), *await work.start("d", 2)]
    # no room: the longest line has given its last place to a shorter one, as long as it is longer
    with pytest.raises(Unavailable):
        await work.do("d")
    assert {group: len(line) for group, line in work.turns._lines.items()} == {"a": 3, "b": 3, "c": 1, "d": 2}
    given_up = [task for task in waiting if task.done()]
    assert [type(task.exception()) for task in given_up] == [Unavailable]
    while work.going:
        await work.let_go()
    assert not work.turns._lines
    outcomes = await asyncio.gather(*crowd, *waiting, return_exceptions=True)
    assert Counter(map(type, outcomes)) == {type(None): 10, Unavailable: 2}


async def test_who_waits_for_too_long_is_refused_and_leaves_no_place_behind() -> None:
    work = Work(Turns(1, most=10, most_of_group=4, longest_s=0.01))
    await work.start("a")
    with pytest.raises(Unavailable):
        await work.do("b")
    assert not work.turns._lines
    assert not work.turns._fresh
    await work.let_go()
    (again,) = await work.start("b")
    await work.let_go()
    await again


@pytest.mark.parametrize("seed", range(20))
async def test_no_turn_is_lost_or_made_whatever_is_cancelled_when(seed: int) -> None:
    chance = random.Random(seed)
    turns = Turns(3, most=12, most_of_group=5, longest_s=60)
    work = Work(turns)
    tasks: list[asyncio.Task[None]] = []
    for _ in range(400):
        match chance.randrange(4):
            case 0 | 1:
                tasks.append(asyncio.create_task(work.do(chance.choice("abcdef"))))
            case 2 if work.going:
                work.going.pop(chance.randrange(len(work.going))).set()
            case _ if tasks:
                chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(o) for o in outcomes} <= {type(None), asyncio.CancelledError, RateLimited, Unavailable}
    assert (turns._free, turns._room, turns._lines) == (3, 12, {})
    assert not turns._fresh
    assert not turns._served
