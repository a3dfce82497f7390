"""Every number and duration of the settings has a range, which is named when a value is outside of it."""

import pytest

from app.kernel.config import Misconfigured, environment_name, load, schema
from app.processes import sections
from tests.support.project import ROOT

RANGES = {item.key: item.range for kind in sections() for item in schema(kind) if item.type in (int, float)}


@pytest.mark.parametrize(("number", "duration"), [("-1", "9999999d"), ("9" * 200, "9" * 400 + "d")])
def test_values_outside_of_their_range_are_refused_with_the_range(number: str, duration: str) -> None:
    wrong = {key: duration if expected[-1].isalpha() else number for key, expected in RANGES.items()}
    with pytest.raises(Misconfigured) as refused:
        load(ROOT, sections(), {"APP_ENV": "test", **{environment_name(key): value for key, value in wrong.items()}})
    found = {problem.key: (problem.source, problem.message) for problem in refused.value.problems}
    for key, expected in RANGES.items():
        source, message = found[key]
        assert source == environment_name(key)
        assert message.startswith(f"expected {expected}, got '{wrong[key][:20]}"), (key, message)
        assert len(message) < 200
    assert len(RANGES) > 25


@pytest.mark.parametrize("wrong", [[""], ["default", " "], ["a\nb"], ["x" * 129], "", " , "])
def test_names_of_queues_are_names(wrong: object) -> None:
    with pytest.raises(Misconfigured, match=r"queue\.names"):
        load(ROOT, sections(), {"APP_ENV": "test"}, {"queue.names": wrong})
