"""Work that many want at the same time."""

import asyncio

import pytest

from app.kernel.concurrency import Shared


async def test_many_share_one_failure_instead_of_failing_one_after_the_other() -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.01)
        raise KeyError(runs)

    shared = Shared(work)
    ended = await asyncio.gather(*(shared() for _ in range(100)), return_exceptions=True)
    assert {repr(error) for error in ended} == {"KeyError(1)"}
    with pytest.raises(KeyError, match="2"):
        await shared()


async def test_work_goes_on_for_the_others_when_one_is_cancelled() -> None:
    gate = asyncio.Event()
    shared = Shared(gate.wait)  # pyright: ignore[reportArgumentType] - its result is of no use
    first, second = asyncio.create_task(shared()), asyncio.create_task(shared())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    assert first.cancelled()
    assert not second.done()
    gate.set()
    await second


async def test_a_failure_that_nobody_waits_for_is_no_unhandled_error() -> None:
    gate = asyncio.Event()

    async def work() -> None:
        await gate.wait()
        raise KeyError

    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    asked = asyncio.create_task(Shared(work)())
    await asyncio.sleep(0)
    asked.cancel()
    gate.set()
    await asyncio.wait({asked})
    await asyncio.sleep(0.01)
    assert unhandled == []
