"""Deadlines: each is kept, none that has ended is."""

import asyncio

import pytest

from app.kernel.concurrency import Deadlines


async def test_what_takes_too_long_is_called_back_once_and_what_ends_in_time_is_not() -> None:
    deadlines, called = Deadlines(0.05), list[str]()
    long, short = lambda: called.append("long"), lambda: called.append("short")
    deadlines.begin(long)
    deadlines.begin(short)
    deadlines.end(short)
    await asyncio.sleep(0.1)
    deadlines.end(long)  # it is safe to end what has expired
    assert called == ["long"]


async def test_deadlines_expire_in_the_order_of_their_beginning_each_at_its_time() -> None:
    loop, deadlines = asyncio.get_running_loop(), Deadlines(0.05)
    began, called = list[float](), list[float]()
    for _ in range(4):
        began.append(loop.time())
        deadlines.begin(lambda: called.append(loop.time()))
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    took = [end - start for start, end in zip(began, called, strict=True)]
    assert min(took) >= 0.05


async def test_a_callback_may_begin_another_deadline() -> None:
    deadlines, called = Deadlines(0.02), list[str]()

    def again() -> None:
        called.append("x")
        if len(called) < 3:
            deadlines.begin(again)

    deadlines.begin(again)
    async with asyncio.timeout(10):
        while len(called) < 3:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert called == ["x"] * 3


async def test_a_callback_that_fails_or_begins_another_does_not_delay_those_that_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, deadlines = asyncio.get_running_loop(), Deadlines(5)
    failures, called = list[object](), list[str]()
    loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)

    async def passes(seconds: float) -> None:
        nonlocal now
        now += seconds
        for _ in range(3):
            await asyncio.sleep(0)

    def fail() -> None:
        deadlines.begin(lambda: None)
        raise ValueError

    deadlines.begin(fail)
    await passes(2)
    deadlines.begin(lambda: called.append("the next"))
    await passes(3.5)
    assert [type(failure) for failure in failures] == [ValueError]
    assert called == []
    await passes(2)
    assert called == ["the next"]
