"""What operators see of dead letters, and do to them."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app.kernel.errors import Invalid
from app.kernel.queue import Handler, JobExists, NeverRetry, Task
from app.modules.platform import dead_letters
from app.modules.platform.dead_letters import DeadLetterRef, DeadLettersChosen, DeadLettersWanted
from app.modules.platform.domain.queue import DeadLetterNotFound, JobEnded, JobNotFound
from app.modules.platform.jobs import JobRef
from tests.kernel.queue.conftest import GREET, Bench, Greeting
from tests.modules.platform.conftest import NOBODY, OPERATOR, Operator

OTHER = Task("greet.other", Greeting, queue="other")


async def bury(bench: Bench, count: int = 1, task: Task[Any] = GREET, **options: Any) -> list[UUID]:
    """Make so many dead letters; return their ids, oldest first."""

    async def give_up(greeting: Greeting) -> None:
        raise NeverRetry("nobody lives here")

    before = len(await bench.dead())
    for number in range(count):
        await bench.queue.enqueue(bench.db, task, Greeting(str(number)), **options)
    async with bench.consuming([Handler(task, give_up)], names=(task.queue,)):
        await bench.until(lambda: bench.rows("SELECT count(*) FROM kernel.dead_letters"), [(before + count,)])
    rows = await bench.rows("SELECT id FROM kernel.dead_letters ORDER BY id")
    return [letter for (letter,) in rows][before:]


async def test_dead_letters_are_listed_and_shown_with_why_they_died(bench: Bench, operator: Operator) -> None:
    ids = await bury(bench, 2)
    (other,) = await bury(bench, task=OTHER, unique_key="k")

    async def found(**wanted: Any) -> list[UUID]:
        return [letter.id for letter in (await operator.dead_letters.list(DeadLettersWanted(**wanted))).items]

    assert await found() == [other, *reversed(ids)]
    assert await found(queue="other") == await found(task="greet.other") == [other]
    page = await operator.dead_letters.list(DeadLettersWanted(limit=1))
    assert await found(cursor=page.next_cursor) == list(reversed(ids))
    assert page.items[0].reason == "never to be retried: nobody lives here"
    assert not hasattr(page.items[0], "payload")
    shown = await operator.dead_letters.get(DeadLetterRef(other))
    assert (shown.payload, shown.unique_key, shown.attempt) == ({"name": "0", "times": 1}, "k", 1)
    assert [e.error for e in shown.errors] == ["never to be retried: nobody lives here"]
    with pytest.raises(DeadLetterNotFound):
        await operator.dead_letters.get(DeadLetterRef(NOBODY))
    with pytest.raises(JobNotFound, match="dead letter"):
        await operator.jobs.get(JobRef(other))
    with pytest.raises(JobEnded, match="dead letter"):
        await operator.jobs.retry(OPERATOR, JobRef(other))


async def test_a_dead_letter_that_is_retried_runs_with_all_attempts_and_what_it_was(
    bench: Bench, operator: Operator
) -> None:
    (letter,) = await bury(bench, unique_key="k", group_key="g", priority=5, timeout_s=7)
    changed = await operator.dead_letters.retry(OPERATOR, DeadLetterRef(letter))
    assert (changed.id, changed.state) == (letter, "ready")
    shown = await operator.jobs.get(JobRef(letter))
    assert (shown.attempt, shown.max_attempts, shown.priority, shown.timeout_s) == (0, 3, 5, 7)
    assert (shown.unique_key, shown.turn_key, len(shown.errors)) == ("k", "group/g", 1)
    seen: list[str] = []

    async def greet(greeting: Greeting) -> None:
        seen.append(greeting.name)

    async with bench.consuming(greet):
        await bench.until(bench.finished, [("done", 1)])
    assert seen == ["0"]
    assert await bench.dead() == []
    with pytest.raises(DeadLetterNotFound):
        await operator.dead_letters.retry(OPERATOR, DeadLetterRef(letter))
    assert operator.audited() == [("platform.retry_dead_letter", str(letter))]


async def test_workers_are_told_of_a_dead_letter_that_is_retried(bench: Bench, operator: Operator) -> None:
    (letter,) = await bury(bench)

    async def greet(greeting: Greeting) -> None:
        """Does nothing."""

    async with bench.consuming(greet, poll_interval=30):
        await asyncio.sleep(0.3)
        await operator.dead_letters.retry(OPERATOR, DeadLetterRef(letter))
        await bench.until(bench.finished, [("done", 1)], seconds=5)


async def test_a_dead_letter_whose_unique_key_is_taken_stays_one(bench: Bench, operator: Operator) -> None:
    (letter,) = await bury(bench, unique_key="k")
    successor = await bench.queue.enqueue(bench.db, GREET, Greeting("new"), unique_key="k")
    assert successor != letter
    with pytest.raises(JobExists):
        await operator.dead_letters.retry(OPERATOR, DeadLetterRef(letter))
    retried = await operator.dead_letters.retry_some(OPERATOR, DeadLettersChosen(all=True))
    assert (retried.retried_count, retried.conflict_count, retried.next_cursor) == (0, 1, None)
    assert (await operator.dead_letters.get(DeadLetterRef(letter))).unique_key == "k"
    await operator.jobs.cancel(OPERATOR, JobRef(successor))
    assert (await operator.dead_letters.retry(OPERATOR, DeadLetterRef(letter))).state == "ready"


async def test_many_are_retried_in_chunks_and_each_once_by_two_operators_at_the_same_time(
    bench: Bench, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "AT_ONCE", 4)
    ids = await bury(bench, 30)
    await bury(bench, 2, task=OTHER)

    async def retry_all() -> int:
        count, cursor, chunks = 0, None, 0
        while True:
            done = await operator.dead_letters.retry_some(OPERATOR, DeadLettersChosen(task="greet", cursor=cursor))
            count, cursor, chunks = count + done.retried_count, done.next_cursor, chunks + 1
            if cursor is None:
                return count

    counts = await asyncio.gather(retry_all(), retry_all())
    assert sum(counts) == 30
    assert await bench.rows("SELECT id FROM kernel.jobs ORDER BY id") == [(letter,) for letter in ids]
    assert len(await bench.dead()) == 2
    assert {action for action, _ in operator.audited()} == {"platform.retry_dead_letters"}


async def test_dead_letters_are_purged_one_by_one_by_age_or_all(
    bench: Bench, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "AT_ONCE", 2)
    ids = await bury(bench, 8)
    await operator.dead_letters.purge(OPERATOR, DeadLetterRef(ids[0]))
    with pytest.raises(DeadLetterNotFound):
        await operator.dead_letters.purge(OPERATOR, DeadLetterRef(ids[0]))
    await bench.db.run(
        "UPDATE kernel.dead_letters SET died_at = now() - interval '8 days' WHERE id = ANY(%s)", (ids[1:4],)
    )
    week_ago = datetime.now(UTC) - timedelta(days=7)

    async def purge(**chosen: Any) -> list[int]:
        counts, cursor = [], None
        while True:
            done = await operator.dead_letters.purge_some(OPERATOR, DeadLettersChosen(**chosen, cursor=cursor))
            counts.append(done.deleted_count)
            if (cursor := done.next_cursor) is None:
                return counts

    assert await operator.dead_letters.count(DeadLettersChosen(died_before=week_ago)) == 3
    assert await purge(died_before=week_ago) == [2, 1]
    assert await purge(queue="other") == [0]
    assert await purge(all=True) == [2, 2, 0]
    assert await bench.dead() == []


async def test_nothing_is_purged_or_retried_unless_it_is_clear_which(operator: Operator) -> None:
    unclear = [
        DeadLettersChosen(),
        DeadLettersChosen(all=True, queue="default"),
        DeadLettersChosen(died_before=datetime(2026, 1, 1)),  # noqa: DTZ001 - without a time zone
    ]
    for chosen in unclear:
        for act in (operator.dead_letters.purge_some, operator.dead_letters.retry_some):
            with pytest.raises(Invalid):
                await act(OPERATOR, chosen)
        with pytest.raises(Invalid):
            await operator.dead_letters.count(chosen)
