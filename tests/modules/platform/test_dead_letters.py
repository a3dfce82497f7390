"""What operators see of dead letters, and do to them."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app.kernel.db import run_in_chunks
from app.kernel.db.retention import _PRUNE_PURGED
from app.kernel.errors import Invalid
from app.kernel.queue import Handler, JobExists, NeverRetry, Task
from app.kernel.queue.purges import _COLUMNS
from app.modules.platform import dead_letters
from app.modules.platform.dead_letters import (
    CausesWanted,
    DeadLetterRef,
    DeadLettersChosen,
    DeadLettersWanted,
    PurgesWanted,
    PurgeToUndo,
)
from app.modules.platform.domain.queue import DeadLetterNotFound, JobEnded, JobNotFound, PurgeNotFound
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
    assert (shown.payload, shown.unique_key, shown.attempt) == ({"name": "redacted", "times": "redacted"}, "k", 1)
    assert operator.audited() == []
    revealed = await operator.dead_letters.reveal(OPERATOR, DeadLetterRef(other))
    assert revealed == replace(shown, payload={"name": "0", "times": 1})
    assert operator.audited() == [("platform.reveal_dead_letter", str(other))]
    assert [e.error for e in shown.errors] == ["never to be retried: nobody lives here"]
    for show in (operator.dead_letters.get, operator.dead_letters.reveal):
        with pytest.raises(DeadLetterNotFound):
            await show(OPERATOR, DeadLetterRef(NOBODY))
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


async def test_causes_group_letters_by_task_and_by_what_they_died_of(bench: Bench, operator: Operator) -> None:
    once = Task("greet", Greeting, max_attempts=1)
    other = Task("greet.other", Greeting, max_attempts=1)

    async def fail(greeting: Greeting) -> None:
        if greeting.name.startswith("never"):
            raise NeverRetry(f"order 7f3a{greeting.times} of '{greeting.name}' is unknown")
        if greeting.name == "key":
            raise KeyError(greeting.times)
        raise ValueError(f"a different text each time: {greeting.name}")

    for number in range(3):
        for name in ("never", "key", f"v{number}"):
            await bench.queue.enqueue(bench.db, once, Greeting(name, number))
    await bench.queue.enqueue(bench.db, other, Greeting("key"))
    async with bench.consuming([Handler(once, fail), Handler(other, fail)]):
        await bench.until(lambda: bench.rows("SELECT count(*) FROM kernel.dead_letters"), [(10,)])
    # letters of the release before have no cause, and are grouped with the new ones by their text
    await bench.db.run("UPDATE kernel.dead_letters SET cause = NULL WHERE reason LIKE 'never%7f3a1%'")

    found = (await operator.dead_letters.causes(CausesWanted())).items
    assert sorted((cause.task, cause.count) for cause in found) == [
        ("greet", 3),
        ("greet", 3),
        ("greet", 3),
        ("greet.other", 1),
    ]
    assert len({(cause.task, cause.cause) for cause in found}) == 4
    same = [cause for cause in found if "KeyError" in cause.reason]
    assert {cause.task for cause in same} == {"greet", "greet.other"}
    for cause in found:
        letters = await operator.dead_letters.list(DeadLettersWanted(task=cause.task, cause=cause.cause))
        assert [letter.id for letter in letters.items][:1] == [cause.id]
        assert len(letters.items) == cause.count
        assert min(letter.died_at for letter in letters.items) == cause.first_at <= cause.last_at
        assert await operator.dead_letters.count(DeadLettersChosen(task=cause.task, cause=cause.cause)) == cause.count
    paged, cursor = [], None
    while True:
        page = await operator.dead_letters.causes(CausesWanted(limit=3, cursor=cursor))
        paged += page.items
        if (cursor := page.next_cursor) is None:
            break
    assert paged == found
    [never] = [cause for cause in found if "never to be" in cause.reason]
    purged = await operator.dead_letters.purge_some(OPERATOR, DeadLettersChosen(task="greet", cause=never.cause))
    assert purged.deleted_count == 3
    assert len((await operator.dead_letters.causes(CausesWanted())).items) == 3


async def test_a_purge_is_undone_once_within_a_day_and_pruned_afterwards(
    bench: Bench, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "AT_ONCE", 2)
    columns = "SELECT d::text FROM kernel.dead_letters d ORDER BY id"
    await bury(bench, 4, priority=3)
    await bury(bench, unique_key="k", group_key="g")
    before = await bench.rows(columns)
    purge_ids, cursor = set(), None
    while True:
        purged = await operator.dead_letters.purge_some(OPERATOR, DeadLettersChosen(all=True, cursor=cursor))
        purge_ids.add(purged.purge_id)
        if (cursor := purged.next_cursor) is None:
            break
    [purge_id] = purge_ids
    assert await bench.dead() == []
    [listed] = (await operator.dead_letters.list_purges(PurgesWanted())).items
    assert (listed.id, listed.count, listed.task) == (purge_id, 5, "greet")
    assert await operator.dead_letters.count_purged(PurgeToUndo(purge_id)) == 5
    await bench.queue.enqueue(bench.db, GREET, Greeting("new"), unique_key="k")

    async def undo(purge_id: UUID) -> list[tuple[int, int]]:
        counts, cursor = [], None
        while True:
            done = await operator.dead_letters.undo_purge(OPERATOR, PurgeToUndo(purge_id, cursor))
            counts.append((done.restored_count, done.taken_count))
            if (cursor := done.next_cursor) is None:
                return counts

    both = await asyncio.gather(undo(purge_id), undo(purge_id), return_exceptions=True)
    counts = [count for done in both if not isinstance(done, BaseException) for count in done]
    assert all(isinstance(done, PurgeNotFound) for done in both if isinstance(done, BaseException))
    assert (sum(restored for restored, _ in counts), sum(taken for _, taken in counts)) == (5, 1)
    assert await bench.rows(columns) == before
    with pytest.raises(PurgeNotFound):
        await operator.dead_letters.undo_purge(OPERATOR, PurgeToUndo(purge_id))

    # one letter alone, and not after a day
    ids = [letter for (letter,) in await bench.rows("SELECT id FROM kernel.dead_letters ORDER BY id")]
    for letter in ids[:2]:
        await operator.dead_letters.purge(OPERATOR, DeadLetterRef(letter))
    assert await undo(ids[0]) == [(1, 0)]
    await bench.db.run("UPDATE kernel.purged_dead_letters SET purged_at = now() - interval '24 hours 1 second'")
    assert (await operator.dead_letters.list_purges(PurgesWanted())).items == []
    with pytest.raises(PurgeNotFound):
        await undo(ids[1])
    assert await run_in_chunks(bench.db, _PRUNE_PURGED) == 1
    assert await bench.rows("SELECT count(*) FROM kernel.purged_dead_letters") == [(0,)]


async def test_what_is_purged_has_every_column_of_a_dead_letter(bench: Bench) -> None:
    named = "SELECT attname::text FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
    letters, purged = [
        {name for (name,) in await bench.db.all(named, (f"kernel.{table}",))}
        for table in ("dead_letters", "purged_dead_letters")
    ]
    assert purged - letters == {"purge_id", "purged_at"}
    assert letters == {name.strip() for name in _COLUMNS.split(",")}
