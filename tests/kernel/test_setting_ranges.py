"""Every number and duration of the settings has a range, which is named when a value is outside of it."""

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from app.kernel.config import Misconfigured, environment_name, load
from app.kernel.config.settings import range_of
from app.processes import sections
from tests.support.project import ROOT

NUMBERS = [
    (kind, item.name)
    for kind in sections()
    for item in fields(kind)  # type: ignore[arg-type]
    if get_type_hints(kind)[item.name] in (int, float)
]


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=[f"{kind.section}.{name}" for kind, name in NUMBERS])
def test_a_value_outside_of_its_range_is_refused_with_the_range(kind: Any, name: str) -> None:
    key = f"{kind.section}.{name}"
    expected = range_of(kind, name)
    duration = expected.endswith("d")
    for wrong in ("9999999d", "9" * 400 + "d", "99999999999") if duration else ("-1", "99999999999"):
        with pytest.raises(Misconfigured) as refused:
            load(ROOT, sections(), {"APP_ENV": "test", environment_name(key): wrong})
        (problem,) = refused.value.problems
        assert (problem.key, problem.source) == (key, environment_name(key))
        assert problem.message.startswith(f"expected {expected}, got '")
        assert len(problem.message) < 200


def test_there_are_many_of_them() -> None:
    assert len(NUMBERS) > 25


@pytest.mark.parametrize("wrong", [[""], ["default", " "], ["a\nb"], ["x" * 129], "", " , "])
def test_names_of_queues_are_names(wrong: object) -> None:
    with pytest.raises(Misconfigured, match=r"queue\.names"):
        load(ROOT, sections(), {"APP_ENV": "test"}, {"queue.names": wrong})
