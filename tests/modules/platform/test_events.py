"""What operators see of events, and how they tell them once more."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from app.kernel.errors import Invalid
from app.kernel.paging import PageByName
from app.kernel.queue import NeverRetry, Subscriber
from app.modules.platform import events
from app.modules.platform.domain.queue import SubscriberNotFound
from app.modules.platform.events import EventsWanted, ReplayWanted
from tests.kernel.queue.conftest import GREET, Bench, Greeting
from tests.modules.platform.conftest import OPERATOR, Operator

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Moved:
    event_type: ClassVar[str] = "test.moved"
    step: int


@dataclass(frozen=True)
class Stopped:
    event_type: ClassVar[str] = "test.stopped"
    step: int


def collects(name: str, seen: list[int], event: Any = Moved, **more: Any) -> Subscriber:
    async def collect(event: Any) -> None:
        seen.append(event.step)

    return Subscriber(name, event, collect, **more)


async def replayed(operator: Operator, **wanted: Any) -> list[int]:
    """Replay to the end; return how many events each chunk had."""
    counts, cursor = [], None
    while True:
        done = await operator.events.replay(OPERATOR, ReplayWanted(**wanted, cursor=cursor))
        counts.append(done.enqueued_count)
        if (cursor := done.next_cursor) is None:
            return counts


async def test_events_are_listed_newest_first_by_type_and_time(bench: Bench, operator: Operator) -> None:
    for step in range(3):
        await bench.queue.publish(bench.db, Moved(step))
        await asyncio.sleep(0.002)
    await bench.queue.publish(bench.db, Stopped(9))
    rows = await bench.rows("SELECT id, published_at FROM kernel.events ORDER BY published_at DESC")

    async def found(**wanted: Any) -> list[object]:
        return [event.id for event in (await operator.events.list(EventsWanted(**wanted))).items]

    ids = [event_id for event_id, _ in rows]
    assert await found() == ids
    assert await found(type="test.moved") == ids[1:]
    assert await found(type="test.stopped", to=rows[0][1]) == []
    assert await found(from_=rows[2][1], to=rows[0][1]) == ids[1:3]
    trace = "0af7651916cd43dd8448eb211c80319c"
    await bench.db.run(
        "UPDATE kernel.events SET trace_context = '00-' || %s || '-b7ad6b7169203331-01' WHERE id = %s", (trace, ids[2])
    )
    assert await found(trace=trace) == ids[2:3]
    assert await found(trace=trace, type="test.stopped") == []
    page = await operator.events.list(EventsWanted(limit=3))
    assert await found(cursor=page.next_cursor) == ids[3:]
    assert not any(hasattr(event, "payload") for event in page.items)
    with pytest.raises(Invalid):
        await operator.events.list(EventsWanted(from_=datetime(2026, 1, 1)))  # noqa: DTZ001 - without a time zone


async def test_subscribers_are_listed_with_the_events_that_they_have_not_handled(
    bench: Bench, operator: Operator
) -> None:
    async def hear(event: Any) -> None:
        if event.step == 3:
            raise NeverRetry

    subscribers = [
        Subscriber("a", Moved, hear, in_order=True),
        Subscriber("b", Moved, hear),
        Subscriber("c", Stopped, hear),
    ]
    await bench.queue.events.subscribe(bench.db, subscribers)
    await bench.queue.publish(bench.db, *(Moved(step) for step in range(4)))
    await bench.db.run("UPDATE kernel.jobs SET created_at = now() - interval '90 s' WHERE task = 'a'")

    async def lags() -> list[tuple]:
        found = (await operator.events.subscriptions(PageByName())).items
        return [(s.subscriber, s.in_order, s.job_count, s.dead_count) for s in found]

    assert await lags() == [("a", True, 4, 0), ("b", False, 4, 0), ("c", False, 0, 0)]
    page = await operator.events.subscriptions(PageByName(limit=2))
    assert 90 <= page.items[0].oldest_s < 120
    assert page.items[1].oldest_s < 60
    [rest] = (await operator.events.subscriptions(PageByName(limit=2, cursor=page.next_cursor))).items
    assert (rest.subscriber, rest.oldest_s, rest.nats_count) == ("c", None, None)
    async with bench.consuming(subscribers):
        await bench.until(lags, [("a", True, 0, 1), ("b", False, 0, 1), ("c", False, 0, 0)])


async def test_a_new_subscriber_is_given_each_event_of_the_log_once_in_order(
    bench: Bench, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "AT_ONCE", 7)  # within what was published at one time
    old: list[int] = []
    new: list[int] = []
    await bench.queue.publish(bench.db, *(Moved(step) for step in range(20)))
    await bench.queue.publish(bench.db, Stopped(-1))
    async with bench.consuming([collects("old", old), collects("new", new, in_order=True)]):
        await bench.queue.publish(bench.db, Moved(20))
        await bench.until(lambda: asyncio.sleep(0, (old, new)), ([20], [20]))
        assert await operator.events.count_replay(ReplayWanted("new", LONG_AGO)) == 21
        (upto,) = (await bench.rows("SELECT max(published_at) FROM kernel.events"))[0]
        assert await replayed(operator, subscriber="new", from_=LONG_AGO, to=upto) == [7, 7, 6]
        await bench.until(lambda: asyncio.sleep(0, new), [20, *range(20)])
    assert old == [20]
    assert [target for _, target in operator.audited()] == ["new"] * 3


async def test_what_is_published_during_a_replay_is_not_delivered_twice(
    bench: Bench, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "AT_ONCE", 2)
    seen: list[int] = []
    await bench.queue.publish(bench.db, *(Moved(step) for step in range(3)))
    async with bench.consuming([collects("late", seen)]):
        first = await operator.events.replay(OPERATOR, ReplayWanted("late", LONG_AGO))
        assert (first.enqueued_count, first.next_from) == (
            2,
            (await operator.events.list(EventsWanted())).items[0].published_at,
        )
        await bench.queue.publish(bench.db, Moved(3))
        rest = await operator.events.replay(OPERATOR, ReplayWanted("late", LONG_AGO, cursor=first.next_cursor))
        assert (rest.enqueued_count, rest.next_cursor) == (1, None)
        await bench.until(lambda: asyncio.sleep(0, sorted(seen)), [0, 1, 2, 3])


async def test_a_replay_takes_events_from_one_time_on_and_before_another(bench: Bench, operator: Operator) -> None:
    for step in range(4):
        await bench.queue.publish(bench.db, Moved(step))
    times = [at for (at,) in await bench.rows("SELECT published_at FROM kernel.events ORDER BY published_at")]
    seen: list[int] = []
    async with bench.consuming([collects("new", seen)]):
        assert await replayed(operator, subscriber="new", from_=times[1], to=times[3]) == [2]
        await bench.until(lambda: asyncio.sleep(0, sorted(seen)), [1, 2])
        assert await replayed(operator, subscriber="new", from_=times[1], to=times[3]) == [2]  # once more
        await bench.until(lambda: asyncio.sleep(0, sorted(seen)), [1, 1, 2, 2])


async def test_a_replay_delays_nothing_that_is_enqueued_meanwhile(bench: Bench, operator: Operator) -> None:
    order: list[object] = []
    await bench.queue.publish(bench.db, Moved(1))

    async def greet(greeting: Greeting) -> None:
        order.append(greeting.name)

    await bench.db.run("INSERT INTO kernel.subscriptions (subscriber, event_type) VALUES ('greet', 'test.moved')")
    await replayed(operator, subscriber="greet", from_=LONG_AGO)
    job = await bench.queue.enqueue(bench.db, GREET, Greeting("meanwhile"))
    ranked = await bench.rows("SELECT id = %s FROM kernel.jobs ORDER BY rank", job)
    assert ranked == [(True,), (False,)]


async def test_a_replay_that_makes_no_sense_is_refused(bench: Bench, operator: Operator) -> None:
    await bench.db.run(
        "INSERT INTO kernel.subscriptions (subscriber, event_type) VALUES ('a', 'test.moved'), ('b', 'test.moved')"
    )
    with pytest.raises(SubscriberNotFound, match="no subscriber c, but a, b"):
        await operator.events.replay(OPERATOR, ReplayWanted("c", LONG_AGO))
    future = datetime.now(UTC) + timedelta(days=1)
    for wrong in (
        ReplayWanted("a", future),
        ReplayWanted("a", future, future),
        ReplayWanted("a", datetime(2026, 1, 1)),  # noqa: DTZ001 - without a time zone
        ReplayWanted("a", LONG_AGO, cursor="not ours"),
        ReplayWanted("a", LONG_AGO, cursor="AAAA"),
        ReplayWanted("a", LONG_AGO, cursor="é"),
        ReplayWanted("a", LONG_AGO, cursor=("f39_" * 11)[:43]),
    ):
        with pytest.raises(Invalid):
            await operator.events.replay(OPERATOR, wrong)
    assert await bench.states() == []
    assert operator.audited() == []
