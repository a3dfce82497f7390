"""Groups of captured errors: releases, regressions, counts per hour, filters, and changes of many at once."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.kernel.actions.compose import operations
from app.kernel.config import load
from app.kernel.errors import Invalid
from app.kernel.product import VERSION
from app.kernel.sentinel import ErrorFilters, Group, StoredError
from app.kernel.sentinel.postgres import Errors
from app.kernel.sentinel.releases import is_newer
from app.modules.platform.errors import (
    CapturedErrors,
    ErrorsChosen,
    ErrorsToMute,
    ErrorsToResolve,
    ErrorsWanted,
    ErrorToMute,
    ErrorToResolve,
)
from app.processes import new_process, sections
from tests.kernel.queue.conftest import Bench, bench  # noqa: F401 - a fixture
from tests.modules.platform.conftest import Acting
from tests.support.project import ROOT

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


@dataclass
class Groups:
    """The actions on groups of errors, and the store that processes use."""

    acts: Acting
    errors: Errors
    bench: Bench

    async def captured(self, release: str, *fingerprints: str, count: int = 1) -> None:
        groups = [Group(each, "job", "T", "t", "c", count, NOW, NOW) for each in fingerprints or ("one",)]
        await self.errors.store(self.bench.db, None, groups, "p", release)

    async def only(self) -> StoredError:
        [found] = (await self.acts.list(ErrorsWanted())).items
        return found

    async def add(self, **columns: Any) -> None:
        columns = {"kind": "job", "type": "T", "title": "t", "culprit": "c", "state": "open", "count": 1} | columns
        columns |= {"processes": [], "samples": "[]", "first_seen_at": NOW, "last_seen_at": columns.get("seen", NOW)}
        columns = {"first_release": "1", "last_release": "1"} | columns
        columns.pop("seen", None)
        names, places = ", ".join(columns), ", ".join(f"%({name})s" for name in columns)
        await self.bench.db.run(f"INSERT INTO kernel.errors ({names}) VALUES ({places})", columns)


@pytest.fixture
async def groups(bench: Bench) -> AsyncIterator[Groups]:  # noqa: F811
    settings = load(ROOT, sections(), {"APP_ENV": "test", **bench.test.env})
    async with new_process("test", settings).opened() as p:
        yield Groups(Acting(await operations(p, [CapturedErrors])), Errors(3600), bench)


@pytest.mark.parametrize(
    ("release", "known", "newer"),
    [
        ("1.10.0", ["1.9.0"], True),
        ("1.9.0", ["1.10.0"], False),
        ("1.0", ["1.0.0"], False),
        ("1.0rc1", ["1.0"], False),
        ("1.0", ["1.0rc1", "0.9"], True),
        ("1.0.post1", ["1.0"], True),
        ("2.0", ["1.0", "3.0"], False),
        ("1.0+build.2", ["1.0+build.10"], False),
        ("1!0.1", ["2026.1"], True),
        ("unknown", ["1.0"], True),
        ("unknown", ["unknown", "1.0"], False),
        ("1.0", ["unknown"], True),
        ("1.0", ["unknown", "1.1"], False),
    ],
)
def test_a_release_is_newer_only_if_it_is_newer_than_all_known_ones(
    release: str, known: list[str], newer: bool
) -> None:
    assert is_newer(release, known) is newer


async def test_a_group_resolved_in_the_next_release_regresses_only_with_a_newer_one(groups: Groups) -> None:
    await groups.captured("99.1")
    group = await groups.only()
    await groups.acts.resolve(ErrorToResolve(group.id, next_release=True))
    assert (await groups.only()).resolved_releases == sorted(["99.1", VERSION])
    for release in ("99.1", VERSION, "98.9", "99.1rc1"):
        await groups.captured(release)
        assert (await groups.only()).state == "resolved", release
    assert (await groups.only()).count == 5
    await groups.captured("99.2")
    found = await groups.only()
    assert (found.state, found.regressed_release, found.resolved_releases) == ("regressed", "99.2", None)
    assert found.regressed_at is not None
    assert (found.first_release, found.last_release, found.count) == ("99.1", "99.2", 6)
    await groups.acts.resolve(ErrorToResolve(group.id))  # any error reopens it now
    assert (await groups.only()).regressed_release == "99.2"
    await groups.captured("0.1")
    found = await groups.only()
    assert (found.state, found.regressed_release) == ("regressed", "0.1")


async def test_counts_per_hour_are_those_of_the_last_day(groups: Groups) -> None:
    chance, model = random.Random(8), [0] * 24
    for _ in range(40):
        passed, count = chance.choice([0, 0, 0, 1, 2, 7, 23, 24, 30]), chance.randint(1, 9)
        await groups.bench.db.run("UPDATE kernel.errors SET hourly_at = hourly_at - %s * interval '1 hour'", (passed,))
        model = (model + [0] * passed)[-24:]
        if model != [0] * 24:
            assert (await groups.only()).hourly == model
        await groups.captured("1", count=count)
        model[-1] += count
        assert (await groups.only()).hourly == model


async def test_filters_select_what_a_model_selects(groups: Groups) -> None:
    chance = random.Random(14)
    ages, kinds, releases = (0, 1, 5, 30), ("job", "request", "outage"), ("1.0", "1.1", "2.0")
    for number in range(60):
        state = chance.choice(["open", "resolved", "muted", "muted", "regressed"])
        until = NOW + chance.choice([-1, 1]) * HOUR if state == "muted" else None
        first, last = sorted(chance.choices(releases, k=2))
        title, type_ = chance.choice(["Timeout 50%", "Broken_pipe"]), chance.choice(["OSError", "ValueError"])
        await groups.add(
            fingerprint=str(number), state=state, muted_until=until, kind=chance.choice(kinds), first_release=first,
            last_release=last, seen=NOW - chance.choice(ages) * HOUR, title=title, type=type_
        )  # fmt: skip
    everything = (await groups.acts.list(ErrorsWanted(limit=100))).items
    assert len(everything) == 60
    assert {error.state for error in everything} == {"open", "resolved", "muted", "regressed"}

    def matches(error: StoredError, filters: ErrorFilters) -> bool:
        text = f"{error.type} {error.title} {error.culprit}".lower()
        return (
            filters.state in (None, error.state)
            and filters.kind in (None, error.kind)
            and (filters.q or "").lower() in text
            and filters.release in (None, error.first_release, error.last_release)
            and (filters.seen_after is None or error.last_seen_at >= filters.seen_after)
            and (filters.seen_before is None or error.last_seen_at < filters.seen_before)
        )

    choices: dict[str, list[Any]] = {
        "state": ["open", "resolved", "muted", "regressed"],
        "kind": list(kinds),
        "q": ["TIMEOUT", "50%", "n_p", "error", "%"],
        "release": ["1.0", "2.0", "3.0"],
        "seen_after": [NOW - 5 * HOUR, NOW - 2 * HOUR],
        "seen_before": [NOW, NOW - 2 * HOUR],
    }
    assert set(choices) == {field.name for field in fields(ErrorFilters)}
    for _ in range(80):
        names = chance.sample(sorted(choices), chance.randint(1, 3))
        given = {name: chance.choice(choices[name]) for name in names}
        found = (await groups.acts.list(ErrorsWanted(**given, limit=100))).items
        assert [e.id for e in found] == [e.id for e in everything if matches(e, ErrorFilters(**given))], given
        unresolved = [error for error in found if error.state != "resolved"]
        assert await groups.acts.count(ErrorsChosen(**given)) == len(unresolved), given


async def in_batches(act: Any, chosen: Any) -> list[int]:
    """Repeat a change until it is complete; return the count of each batch."""
    counts = []
    while True:
        done = await act(chosen)
        counts.append(next(getattr(done, field.name) for field in fields(done) if field.name.endswith("_count")))
        if done.next_cursor is None:
            return counts
        chosen = replace(chosen, cursor=done.next_cursor)


async def test_many_groups_are_muted_and_resolved_in_batches_while_errors_are_stored(groups: Groups) -> None:
    await groups.bench.db.run(
        "INSERT INTO kernel.errors (fingerprint, kind, type, title, culprit, state, count, processes, first_seen_at,"
        " last_seen_at, first_release, last_release, samples)"
        " SELECT (2300 - n)::text, CASE WHEN n = 7 THEN 'job' ELSE 'request' END, 'T', 't', 'c',"
        " CASE WHEN n % 23 = 0 THEN 'resolved' ELSE 'open' END, 1, '{}', now(), now(), '1', '1', '[]'"
        " FROM generate_series(1, 2300) n"
    )
    assert await groups.acts.count(ErrorsToMute(all=True)) == 2200
    storing = groups.captured("1", *(str(2300 - n) for n in range(1, 2300) if n % 23))
    muted, _ = await asyncio.gather(in_batches(groups.acts.mute_some, ErrorsToMute(all=True, seconds=60)), storing)
    assert muted == [1000, 1000, 200]
    assert await groups.acts.count(ErrorsToResolve(state="muted")) == 2200
    jobs = ErrorsToResolve(kind="job", next_release=True)
    assert await in_batches(groups.acts.resolve_some, jobs) == [1]
    assert await in_batches(groups.acts.resolve_some, jobs) == [0], "it is safe to repeat"
    assert await in_batches(groups.acts.resolve_some, ErrorsToResolve(state="muted")) == [1000, 1000, 199]
    states = (
        "SELECT state, count(*), count(resolved_releases), count(muted_until), sum(count) FROM kernel.errors GROUP BY 1"
    )
    assert await groups.bench.rows(states) == [("resolved", 2300, 1, 0, 4500)]
    noted = (
        "SELECT details->>'kind', details->>'resolved_count' FROM kernel.audit WHERE action = 'platform.resolve_errors'"
    )
    assert (await groups.bench.rows(noted))[0] == ("job", "1")


async def test_what_makes_no_sense_is_refused_and_changes_nothing(groups: Groups) -> None:
    await groups.captured("1")
    group = await groups.only()
    naive, soon = datetime(2026, 1, 1), NOW + HOUR  # noqa: DTZ001 - what a client may send
    for act, given in [
        (groups.acts.resolve_some, ErrorsToResolve()),
        (groups.acts.resolve_some, ErrorsToResolve(all=True, kind="job")),
        (groups.acts.count, ErrorsChosen(seen_before=naive)),
        (groups.acts.list, ErrorsWanted(seen_after=naive)),
        (groups.acts.mute_some, ErrorsToMute(all=True, seconds=60, until=soon)),
        (groups.acts.mute, ErrorToMute(group.id, 60, soon)),
        (groups.acts.mute, ErrorToMute(group.id, until=naive)),
        (groups.acts.mute, ErrorToMute(group.id, until=NOW - HOUR)),
        (groups.acts.mute, ErrorToMute(group.id, until=NOW + timedelta(days=366))),
    ]:
        with pytest.raises(Invalid):
            await act(given)
    assert (await groups.only()).state == "open"
    await groups.acts.mute(ErrorToMute(group.id, until=soon))
    assert ((await groups.only()).state, (await groups.only()).muted_until) == ("muted", soon)
    await groups.acts.mute(ErrorToMute(group.id))
    left = (await groups.only()).muted_until
    assert left is not None
    assert timedelta(hours=23) < left - NOW < timedelta(hours=25)
