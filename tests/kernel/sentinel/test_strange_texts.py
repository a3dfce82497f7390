"""Texts from outside, whatever they hold, reach the log, the captured errors and the audit trail."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from app.kernel.audit import Audit
from app.kernel.callers import Caller, Origin
from app.kernel.config import LoggerSettings
from app.kernel.sentinel.capture import Capture
from app.kernel.sentinel.postgres import Errors
from app.kernel.telemetry import logs
from app.kernel.telemetry.spans import ExportedSpan
from app.kernel.text import error_text, shown, storable, storable_tree
from tests.kernel.queue.conftest import Bench, bench
from tests.support.project import eventually

__all__ = ["bench"]

TEXTS = (
    "half \ud800 a character",
    "a \0 inside",
    "escaped \\u0000 and \\ud800",
    "{braces} %s",
    "line\nline",
    "x" * 100_000,
)


class Mute(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class Cruel:
    def __format__(self, spec: str) -> str:
        raise RuntimeError

    __str__ = __repr__ = lambda self: self.__format__("")


def strange() -> Iterator[BaseException]:
    yield from (RuntimeError(text) for text in TEXTS)
    yield Mute()
    yield RuntimeError(Cruel())


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Capture]:
    made = Capture({"process": "test"})
    monkeypatch.setattr(logs, "_listener", made)
    logs.configure(LoggerSettings("info", "json", str(tmp_path / "log")), "test")
    yield made
    logs.configure(LoggerSettings("info", "json", "/dev/null"), "test")
    logger.remove()


async def test_an_error_with_any_text_has_its_line_and_its_group(
    bench: Bench, capture: Capture, tmp_path: Path
) -> None:
    count = 0
    for error in strange():
        for about in ({}, {"note": TEXTS[0], TEXTS[1]: [{"deep": TEXTS[0]}], "cruel": Cruel(), "no": float("nan")}):
            count += 1
            logger.bind(**about).opt(exception=error).error("number {} failed", count)
            groups = capture.drain()
            assert len(groups) == 1
            await Errors(3600).store(bench.db, None, groups, "test", "1")
    logs.new_context(job_id=TEXTS[0])
    logs.ended("INFO", "number {} ended: {}", count + 1, Cruel())
    logs.new_context()

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]

    eventually(lambda: len(lines()) == count + 1)
    assert [line["message"].split(" ")[1] for line in lines()[:-1]] == [str(number + 1) for number in range(count)]
    ((stored,),) = await bench.rows("SELECT sum(count)::int FROM kernel.errors")
    assert stored == count


async def test_an_act_with_any_text_is_in_the_audit_trail(bench: Bench) -> None:
    for text in TEXTS[:5]:
        caller = Caller(None, None, origin=Origin("127.0.0.1", text, "r"))
        await Audit().record(bench.db, caller, "test.act", target=text, name=text, names=[text])
    found = await bench.rows("SELECT target, details->>'name', user_agent FROM kernel.audit")
    assert sorted(found) == sorted((storable(text),) * 3 for text in TEXTS[:5])


def test_a_span_with_any_text_can_be_encoded() -> None:
    ended: list[ExportedSpan] = []
    with ExportedSpan(TEXTS[0], None, None, {"one": TEXTS[0]}, ended.append) as span:  # type: ignore[arg-type]
        span.set_attributes({"two": [TEXTS[0]], "three": Cruel()})
        span.add_event(TEXTS[0], {"four": TEXTS[0]})
    (made,) = ended
    for text in (made.name, *map(str, made.attributes.values()), *(name for name, *_ in made.events), str(made.events)):
        text.encode()


@given(st.recursive(st.text(st.characters(codec=None)) | st.floats() | st.none(), st.lists, max_leaves=20))
def test_whatever_is_made_storable_is_json_in_utf_8_and_stays_as_it_is(value: object) -> None:
    made = storable_tree({"value": value})
    text = json.dumps(made, allow_nan=False, ensure_ascii=False)
    assert "\\u0000" not in text.replace("\\\\", "")
    assert json.loads(text.encode()) == made
    assert storable_tree(made) == made


def test_what_is_inside_of_itself_ends() -> None:
    inside: list[object] = []
    inside.append(inside)
    assert json.dumps(storable_tree(inside)).count("[") > 10


def test_what_cannot_be_shown_is_named() -> None:
    assert error_text(Mute()) == "Mute: <Mute that cannot be shown>"
    assert shown(Cruel(), repr) == "<Cruel that cannot be shown>"
    assert error_text(RuntimeError()) == "RuntimeError"
