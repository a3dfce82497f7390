"""Bounds on what is declared, enqueued and stored: what is past one is refused before the database is asked."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, ClassVar

import pytest
from hypothesis import example, given
from hypothesis.strategies import characters, sampled_from, text

from app.kernel.errors import Invalid
from app.kernel.queue import InvalidDeclaration, Subscriber, Task
from app.kernel.queue.codec import encode
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.jobs import JobAdmin, JobFilters
from app.kernel.queue.transport.postgres import PostgresEvents
from tests.kernel.queue.conftest import GREET, Bench, Greeting

NO_DATABASE: Any = None
NO_NUMBERS = (math.nan, math.inf, -math.inf, 1e12, 10**400, "60", True)
NO_COUNTS = (0, -1, 1001, 10**12, 1.5, True, "3")


@dataclass(frozen=True)
class Happened:
    event_type: ClassVar[str] = "test.happened"


async def nothing(_: object) -> None:
    """Does nothing."""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))}, "within 3650 days"),
        ({"at": datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))}, "within 3650 days"),
        ({"at": datetime.now(UTC) + timedelta(days=3651)}, "within 3650 days"),
        ({"at": datetime.now(UTC) - timedelta(days=3651)}, "within 3650 days"),
        *(({"delay_s": wrong}, "delay_s must be 0 to 315360000") for wrong in (*NO_NUMBERS, -1, 315360001)),
        *(({"timeout_s": wrong}, "timeout_s must be 0.001 to 604800") for wrong in (*NO_NUMBERS, 0, -1, 604801)),
        *(({"max_attempts": wrong}, "max_attempts must be a whole number, 1 to 1000") for wrong in NO_COUNTS),
        *(({"priority": wrong}, "priority must be a whole number, -1000 to 1000") for wrong in (0.5, -1001, math.nan)),
        ({"on_conflict": "kepp"}, "on_conflict must be keep, replace or refuse"),
    ],
)
async def test_an_option_that_does_not_fit_is_refused(options: dict, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        await Queue(PostgresEvents()).enqueue(NO_DATABASE, GREET, Greeting("you"), **options)


@pytest.mark.parametrize(
    ("name", "says"),
    [("a\0b", "NUL"), ("a\\\0b", "NUL"), ("a\ud800b", "cannot be written"), ("x" * 17_000_000, "larger than 16 MiB")],
    ids=["NUL", "NUL behind a backslash", "half a character", "too much"],
)
async def test_a_payload_that_cannot_be_stored_is_refused(name: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        await Queue(PostgresEvents()).enqueue(NO_DATABASE, GREET, Greeting(name))


@pytest.mark.parametrize("options", [{"delay_s": 1e12}, {"delay_s": math.nan}, {"priority": 10**6}])
async def test_an_option_that_does_not_fit_is_refused_for_many_jobs_too(options: dict) -> None:
    with pytest.raises(Invalid, match=f"{next(iter(options))} must be"):
        await Queue(PostgresEvents()).enqueue_many(NO_DATABASE, GREET, [Greeting("you")], **options)


async def test_the_furthest_options_are_stored_and_can_be_read(bench: Bench) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=3649)
    furthest = {"delay_s": 3650 * 86400, "priority": -1000, "max_attempts": 1000, "timeout_s": 604800}
    await bench.queue.enqueue(bench.db, GREET, Greeting("you"), **furthest)
    await bench.queue.enqueue(bench.db, GREET, Greeting("you"), at=long_ago, timeout_s=0.001)
    found, _ = await JobAdmin().page(bench.db, JobFilters(), 10, None)
    assert [job.state for job in found] == ["ready", "scheduled"]
    assert found[0].run_at == long_ago


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"max_attempts": 0}, "max_attempts must be a whole number, 1 to 1000"),
        ({"timeout_s": math.inf}, "timeout_s must be 0.001 to 604800"),
        ({"concurrency": 0}, "concurrency must be a whole number, 1 to 1000000"),
        ({"queue": ""}, "queue must have 1 to 128 printable characters"),
        ({"queue": " default"}, "queue must have"),
        ({"max_attempts": 0, "queue": "\ud800"}, "queue must have .*; max_attempts must be"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused_by_its_name_where_it_is_declared(declared: dict, says: str) -> None:
    with pytest.raises(InvalidDeclaration, match=f"^task greet: {says}"):
        Task("greet", **declared)
    if "concurrency" not in declared:
        with pytest.raises(InvalidDeclaration, match=f"^subscriber hears: {says}"):
            Subscriber("hears", Happened, nothing, **declared)


@given(text(characters(codec=None) | sampled_from("\\u0\0\ud800"), max_size=12))
@example("\\u0000")
@example("\\\\u0000")
@example("\\\0")
def test_any_text_is_a_payload_unless_it_cannot_be_stored(name: str) -> None:
    try:
        stored = encode(Greeting, Greeting(name))
    except Invalid:
        assert "\0" in name or any("\ud800" <= character <= "\udfff" for character in name)
    else:
        assert json.loads(stored)["name"] == name
        assert "\0" not in name


async def test_what_looks_like_an_escaped_character_is_text(bench: Bench) -> None:
    for name in ("\\u0000", "\\\\u0000", "\\ud800"):
        await bench.queue.enqueue(bench.db, GREET, Greeting(name))
    found = await bench.rows("SELECT payload->>'name' FROM kernel.jobs ORDER BY seq")
    assert found == [("\\u0000",), ("\\\\u0000",), ("\\ud800",)]
