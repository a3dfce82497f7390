"""Events: one job for each subscriber, in the publisher's transaction."""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from app.kernel.db import Transaction
from app.kernel.errors import Invalid
from app.kernel.queue import Subscriber
from tests.kernel.queue.conftest import Bench


@dataclass(frozen=True)
class Moved:
    event_type: ClassVar[str] = "test.moved"
    who: str
    steps: int


@dataclass(frozen=True)
class MovedBefore:
    """Moved, as it was in an older release."""

    event_type: ClassVar[str] = "test.moved"
    name: str


@dataclass(frozen=True)
class MovedLater:
    """Moved, as it is in a newer release."""

    event_type: ClassVar[str] = "test.moved"
    event_version: ClassVar[int] = 2
    who: str
    distance: float

    @staticmethod
    def upgrade(version: int, fields: dict[str, Any]) -> dict[str, Any]:
        assert version == 1
        return {"who": fields["who"], "distance": fields["steps"] * 0.7}


async def test_each_subscriber_is_given_each_event_once(bench: Bench) -> None:
    seen: list[tuple[str, object]] = []

    def hears(name: str) -> Any:
        async def hear(event: Moved) -> None:
            seen.append((name, event))

        return Subscriber(name, Moved, hear)

    async with bench.consuming([hears("a"), hears("b")]):
        await bench.queue.publish(bench.db, Moved("you", 1), Moved("me", 2))
        await bench.until(bench.finished, [("done", 1)] * 4)
    assert sorted(seen, key=str) == sorted(((n, e) for n in "ab" for e in (Moved("you", 1), Moved("me", 2))), key=str)
    assert await bench.rows("SELECT type, version, payload FROM kernel.events ORDER BY payload->>'steps'") == [
        ("test.moved", 1, {"who": "you", "steps": 1}),
        ("test.moved", 1, {"who": "me", "steps": 2}),
    ]


async def test_an_event_of_a_transaction_that_is_rolled_back_was_never_published(bench: Bench) -> None:
    async def hear(event: Moved) -> None:
        raise AssertionError("never called")

    class Broken(Exception):
        pass

    async with bench.consuming([Subscriber("a", Moved, hear)]):
        with pytest.raises(Broken):  # noqa: PT012
            async with bench.db.begin() as tx:
                await bench.queue.publish(tx, Moved("you", 1))
                raise Broken
    assert await bench.rows("SELECT count(*) FROM kernel.events") == [(0,)]
    assert await bench.states() == []


async def test_an_event_whose_fields_do_not_fit_is_refused(bench: Bench) -> None:
    with pytest.raises(Invalid, match="steps"):
        await bench.queue.publish(bench.db, Moved("you", "far"))  # type: ignore[arg-type]


async def test_a_subscriber_in_order_hears_events_one_at_a_time_in_the_order_of_their_publishing(bench: Bench) -> None:
    steps: list[int] = []

    async def hear(tx: Transaction, event: Moved) -> None:
        await asyncio.sleep(0.002 * (event.steps % 3))
        steps.append(event.steps)

    subscriber = Subscriber("a", Moved, hear, mode="tx", in_order=True)
    async with bench.consuming([subscriber], "x"), bench.consuming([subscriber], "y"):
        await bench.queue.publish(bench.db, *(Moved("you", n) for n in range(15)))
        await bench.queue.publish(bench.db, *(Moved("you", n) for n in range(15, 30)))
        await bench.until(lambda: asyncio.sleep(0, len(steps)), 30)
    assert steps == list(range(30))


async def test_an_event_of_an_older_release_is_upgraded(bench: Bench) -> None:
    seen: list[object] = []

    async def hear(event: MovedLater) -> None:
        seen.append(event)

    async with bench.consuming([Subscriber("a", MovedLater, hear)]):
        await bench.queue.publish(bench.db, Moved("you", 10))
        await bench.queue.publish(bench.db, MovedLater("me", 1.5))
        await bench.until(bench.finished, [("done", 1)] * 2)
    assert seen == [MovedLater("you", 7.0), MovedLater("me", 1.5)]


async def test_an_event_that_cannot_be_upgraded_is_a_dead_letter(bench: Bench) -> None:
    async def hear(event: MovedLater) -> None:
        raise AssertionError("never called")

    async with bench.consuming([Subscriber("a", MovedLater, hear)]):
        await bench.queue.publish(bench.db, MovedBefore("you"))
        await bench.until(
            bench.dead, ["never to be retried: the event of version 1 cannot be upgraded: KeyError('who')"]
        )


async def test_an_event_of_a_newer_release_is_left_to_that(bench: Bench) -> None:
    async def hear(event: Moved) -> None:
        raise AssertionError("never called")

    async with bench.consuming([Subscriber("a", Moved, hear)]):
        await bench.queue.publish(bench.db, MovedLater("you", 1.0))
        await bench.until(bench.states, [("scheduled", 0)])


async def test_the_subscriber_goes_on_with_the_trace_of_the_publisher(bench: Bench) -> None:
    seen: list[int] = []

    async def hear(event: Moved) -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)

    async with bench.consuming([Subscriber("a", Moved, hear)]):
        with trace.use_span(NonRecordingSpan(SpanContext(0xABC, 0xDEF, False, TraceFlags(1)))):
            await bench.queue.publish(bench.db, Moved("you", 1))
        await bench.until(bench.finished, [("done", 1)])
    assert seen == [0xABC]
    assert await bench.rows("SELECT DISTINCT trace_context FROM kernel.finished_jobs") == [
        ("00-00000000000000000000000000000abc-0000000000000def-01",)
    ]
