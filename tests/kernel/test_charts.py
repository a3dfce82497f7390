"""Charts are valid markup for any numbers and labels, without styles and scripts, and have a table behind."""

import random
import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

import pytest

from app.kernel.console.charts import Line, Mark, duration, line_chart, plain, sparkline

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
HOSTILE = "<script>alert('\"&')</script>"


def times(count: int) -> list[datetime]:
    return [NOON + timedelta(minutes=n) for n in range(count)]


def parsed(markup: str) -> ET.Element:
    found = ET.fromstring(markup)
    for element in found.iter():
        assert element.tag in {
            "figure", "figcaption", "p", "span", "svg", "title", "line", "text", "g", "path", "circle", "rect",
            "details", "summary", "div", "table", "thead", "tbody", "tr", "th", "td",
        }  # fmt: skip
        assert not {name for name in element.attrib if name == "style" or name.startswith("on")}
    return found


@pytest.mark.parametrize("seed", range(60))
def test_a_chart_of_anything_is_valid_and_inside_its_frame(seed: int) -> None:
    chance = random.Random(seed)
    count = chance.choice([0, 1, 2, 3, 60, 1440])
    size = chance.choice([0, 1e-9, 0.004, 1, 99.99, 1e7])
    known = chance.choice([0, 0.5, 1])
    lines = [
        Line(HOSTILE, [chance.random() * size if chance.random() < known else None for _ in range(count)])
        for _ in range(chance.choice([1, 2]))
    ]
    marks = [Mark(NOON + timedelta(minutes=chance.randrange(-100, 2000)), HOSTILE) for _ in range(3)]
    figure = parsed(line_chart(HOSTILE, times(count), lines, marks=marks))
    if all(value is None for line in lines for value in line.values):
        assert "No data yet" in "".join(figure.itertext())
        return
    drawing = figure.find("svg")
    assert drawing is not None
    assert drawing.get("role") == "img"
    assert HOSTILE in str(drawing.get("aria-label"))
    for path in drawing.iter("path"):
        for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", str(path.get("d"))):
            assert 0 <= float(x) <= 400
            assert 0 <= float(y) <= 160
    assert len(figure.findall("details//tbody/tr")) == count


@pytest.mark.parametrize("values", [[0.0], [0.0] * 60])
def test_the_axis_of_nothing_but_zeros_goes_to_one(values: list[float]) -> None:
    figure = parsed(line_chart("Errors", times(len(values)), [Line("a second", values)]))
    ticks = [str(text.text) for text in figure.iter("text") if text.get("text-anchor") == "end"]
    assert ticks == ["0", "0.25", "0.5", "0.75", "1"]


def test_the_axes_are_round_and_the_marks_say_which_release_began() -> None:
    values = [float(n % 37) for n in range(61)]
    figure = parsed(
        line_chart("Requests", times(61), [Line("a second", values)], marks=[Mark(NOON + timedelta(minutes=20), "1.2")])
    )
    ticks = [str(text.text) for text in figure.iter("text") if text.get("class") == "tick"]
    assert ticks == ["0", "10", "20", "30", "40", "12:00", "12:15", "12:30", "12:45", "13:00"]
    [mark] = figure.findall("svg/g")
    assert [text.text for text in mark] == ["1.2, 2026-11-27 12:20Z", None, "1.2"]
    assert figure.findtext("details//tbody/tr/th") == "2026-11-27 13:00"


def test_a_line_is_interrupted_where_nothing_is_known_and_a_single_point_is_a_dot() -> None:
    at = [*times(5), NOON + timedelta(minutes=30), NOON + timedelta(minutes=31)]
    figure = parsed(line_chart("x", at, [Line("y", [1, 2, None, 3, None, 5, 6])]))
    assert len([path for path in figure.iter("path") if path.get("class") == "line line-0"]) == 2
    assert len(list(figure.iter("circle"))) == 1


def test_a_sparkline_says_its_last_value_and_its_maximum() -> None:
    assert parsed(sparkline(HOSTILE, [0, 3, 1])).findtext("title") == f"{HOSTILE}: 1 now, at most 3"
    for values in ([], [0.0], [5.0], [0.0] * 9):
        parsed(sparkline("x", values))


def test_numbers_and_durations_are_short() -> None:
    assert [plain(n) for n in (0.25, 12, 1300, 2e6)] == ["0.25", "12", "1.3k", "2M"]
    assert [duration(s) for s in (0.0042, 0.25, 1.5, 300, 9000)] == ["4.2 ms", "250 ms", "1.5 s", "5 min", "2.5 h"]
