"""Whatever an operation raises is a failed attempt with its reason, and its worker goes on."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter

from app.kernel.errors import Unavailable
from app.kernel.queue import Handler, NeverRetry, RetryAfter
from app.kernel.queue.worker.leases import Leases
from tests.kernel.queue.conftest import GREET, Bench, Greeting


class Mute(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Nameless(type):
    """Does not say the name of its classes."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class Nobody(Exception, metaclass=Nameless):
    """Is of a kind that cannot be asked for its name."""


class Base(BaseException):
    """Is no Exception."""


async def cancelled_elsewhere() -> None:
    other = asyncio.ensure_future(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(other.cancel)
    await other


async def cancelled_by_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def bad_answer() -> None:
    TypeAdapter(int).validate_python("of another service")


async def too_deep() -> None:
    await too_deep()


async def in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(bad_answer())


def raising(error: BaseException) -> Callable[[], Any]:
    async def operation() -> None:
        raise error

    return operation


WAYS = {
    "cancelled elsewhere": (cancelled_elsewhere, "CancelledError: what it waited for was cancelled elsewhere"),
    "CancelledError": (raising(asyncio.CancelledError()), "CancelledError: what it waited for was cancelled elsewhere"),
    "a pydantic error": (bad_answer, "ValidationError: 1 validation error for int"),
    "in a group": (in_a_group, "ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)"),
    "RecursionError": (too_deep, "RecursionError: "),
    "KeyboardInterrupt": (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    "SystemExit": (raising(SystemExit(3)), "SystemExit: 3"),
    "GeneratorExit": (raising(GeneratorExit()), "GeneratorExit"),
    "StopAsyncIteration": (raising(StopAsyncIteration()), "StopAsyncIteration"),
    "StopIteration": (raising(StopIteration()), "RuntimeError: coroutine raised StopIteration"),
    "BaseException": (raising(Base("base")), "Base: base"),
    "a group of them": (raising(BaseExceptionGroup("both", [Base(), OSError()])), "BaseExceptionGroup: both"),
    "one without a text": (raising(Mute()), "Mute: <Mute that cannot be shown>"),
    "one of a kind without a name": (raising(Nobody("who")), "Nobody: who"),
    "Unavailable until a text": (raising(Unavailable("no", "soon")), "RuntimeError: an error that cannot be shown"),  # type: ignore[arg-type]
    "text that is no UTF-8": (raising(OSError("\ud800 and \0")), "OSError: ? and "),
    "RetryAfter for ever": (raising(RetryAfter(math.inf, "never")), "RetryAfter: never"),
    "RetryAfter nothing": (raising(RetryAfter(math.nan)), "RetryAfter: requested a retry in nan s"),
    "RetryAfter before": (raising(RetryAfter(-1e12)), "RetryAfter: requested a retry in -1000000000000.0 s"),
    "RetryAfter too late": (raising(RetryAfter(1e12)), "RetryAfter: requested a retry in 1000000000000.0 s"),
    "RetryAfter beyond numbers": (raising(RetryAfter(10**400, "huge")), "RetryAfter: huge"),
    "RetryAfter a text": (raising(RetryAfter("soon")), "RetryAfter: requested a retry in soon s"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("mode", ["at_least_once", "tx"])
async def test_whatever_is_raised_is_a_failed_attempt_with_its_reason(bench: Bench, mode: Any) -> None:
    async def greet(*given: Any) -> None:
        await WAYS[given[-1].name][0]()

    async with bench.consuming([Handler(GREET, greet, mode)], concurrency=3) as running:
        for way in WAYS:
            await bench.queue.enqueue(bench.db, GREET, Greeting(way), max_attempts=10)
        query = """
            SELECT payload->>'name', errors->-1->>'error' FROM kernel.jobs WHERE errors IS NOT NULL
            UNION SELECT payload->>'name', errors->-1->>'error' FROM kernel.dead_letters
        """

        async def failed() -> dict[str, str]:
            found = dict(await bench.rows(query))
            return {way: found.get(way, "")[: len(says)] for way, (_, says) in WAYS.items()}

        await bench.until(failed, {way: says for way, (_, says) in WAYS.items()})
        assert not running.task.done()
        assert await bench.rows("SELECT count(*) FROM kernel.jobs WHERE run_at > now() + interval '31 days'") == [(0,)]


async def test_a_cancellation_that_an_operation_leaves_behind_reaches_no_other_job(bench: Bench) -> None:
    async def greet(greeting: Greeting) -> None:
        if greeting.name == "first":
            await cancelled_by_itself()
            return
        await asyncio.sleep(0.01)

    async with bench.consuming(greet, concurrency=1):
        await bench.queue.enqueue_many(bench.db, GREET, [Greeting("first"), Greeting("second"), Greeting("third")])
        await bench.until(bench.finished, [("done", 1)] * 3)


@pytest.mark.parametrize("way", ["cancelled", "timeout"])
async def test_what_a_stopped_operation_raises_while_it_cleans_up_does_not_hide_why(bench: Bench, way: str) -> None:
    started = asyncio.Event()

    async def greet(greeting: Greeting) -> None:
        try:
            started.set()
            await asyncio.sleep(60)
        finally:
            raise Mute

    async with bench.consuming(greet) as running:
        timeout_s = 0.1 if way == "timeout" else 60
        job_id = await bench.queue.enqueue(bench.db, GREET, Greeting("you"), max_attempts=1, timeout_s=timeout_s)
        await started.wait()
        if way == "cancelled":
            running.consumer.executor.cancel(str(job_id))
            await bench.until(bench.finished, [("cancelled", 1)])
        else:
            reason = "failed 1 times, at last with TimeoutError: took longer than 0.1 s"
            await bench.until(bench.dead, [reason])


async def test_a_job_is_not_cut_while_its_end_is_recorded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    postpone, recording = Leases.postpone, asyncio.Event()

    async def slowly(*given: Any) -> bool:
        recording.set()
        await asyncio.sleep(0.3)
        return await postpone(*given)

    monkeypatch.setattr(Leases, "postpone", slowly)

    async def greet(greeting: Greeting) -> None:
        raise OSError("first")

    async with bench.consuming(greet) as running:
        job_id = await bench.queue.enqueue(bench.db, GREET, Greeting("you"), timeout_s=0.1)
        await recording.wait()
        running.consumer.executor.cancel(str(job_id))
        await bench.until(bench.states, [("scheduled", 1)])
    assert await bench.rows("SELECT errors->0->>'error' FROM kernel.jobs") == [("OSError: first",)]


async def test_never_to_be_retried_is_said_whatever_the_reason_is(bench: Bench) -> None:
    async def greet(greeting: Greeting) -> None:
        raise NeverRetry(Mute() if greeting.name == "mute" else "\ud800")

    async with bench.consuming(greet):
        await bench.queue.enqueue(bench.db, GREET, Greeting("mute"))
        await bench.until(bench.dead, ["never to be retried: <NeverRetry that cannot be shown>"])
        await bench.queue.enqueue(bench.db, GREET, Greeting("text"))
        await bench.until(
            bench.dead, ["never to be retried: <NeverRetry that cannot be shown>", "never to be retried: ?"]
        )
