"""Charts: SVG markup from plain numbers, with a table of the same numbers behind.

No scripts and no style attributes: the stylesheet has the classes. Without it a chart is still readable.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from markupsafe import Markup

_WIDTH, _HEIGHT = 400, 160
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 6, 16, 20
_TICKS, _TIMES = 4, 5
_GAP = 2.5
"""A line is interrupted where the next point is so many times farther away than usual."""
_MINUTES = (1, 2, 5, 10, 15, 30, 60, 120, 180, 240, 360, 720, 1440, 2880, 10080, 20160, 43200, 129600)


@dataclass(frozen=True, slots=True)
class Line:
    """A named line; a value is None where nothing is known."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment to mark, such as the start of a release."""

    at: datetime
    label: str


def line(name: str, points: Iterable[object], field: str) -> Line:
    """Return a line of a field of points."""
    return Line(name, [getattr(point, field) for point in points])


def marks(releases: Iterable[Any]) -> list[Mark]:
    """Return marks of releases: their `at` and `version`."""
    return [Mark(release.at, release.version) for release in releases]


def last(hours: float, now: datetime) -> tuple[datetime, datetime]:
    """Return the period of the last hours."""
    return now - timedelta(hours=hours), now


def plain(value: float) -> str:
    """Return a number for people: 0.25, 12, 1.3k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return a duration for people: 250 ms, 1.5 s, 3 min."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def line_chart(
    title: str,
    times: Sequence[datetime],
    lines: Sequence[Line],
    *,
    period: tuple[datetime, datetime] | None = None,
    marks: Sequence[Mark] = (),
    shown: Callable[[float], str] = plain,
) -> Markup:
    """Return a figure with a chart of lines over time, the first one with the area below it, and a table.

    `period` is what the axis covers, by default from the first to the last time. `shown` formats values.
    """
    begin, end = period or ((times[0], times[-1]) if times else (datetime.now(UTC),) * 2)
    if end <= begin:
        begin, end = begin - timedelta(minutes=1), end + timedelta(minutes=1)
    values = [value for line in lines for value in line.values if value is not None]
    if not values:
        return Markup(
            '<figure class="chart"><figcaption>{title}</figcaption><p class="empty">No data yet.</p></figure>'
        ).format(title=title)
    steps = _steps(max(values))
    frame = _Frame(begin, end, steps[-1])
    parts = [
        *_grid(frame, steps, shown),
        *_time_axis(frame),
        *_marks(frame, marks),
        *(part for at, line in enumerate(lines) for part in _line(frame, times, line, at)),
        *_hits(frame, times, lines, shown),
    ]
    summary = Markup("{}: {}").format(title, ", ".join(_summary(line, shown) for line in lines))
    svg = Markup(
        '<svg viewBox="0 0 {w} {h}" role="img" aria-label="{summary}"><title>{summary}</title>{parts}</svg>'
    ).format(w=_WIDTH, h=_HEIGHT, summary=summary, parts=Markup().join(parts))
    return Markup('<figure class="chart"><figcaption>{}{}</figcaption>{}{}</figure>').format(
        title, _legend(lines), svg, _table(times, lines, shown)
    )


def sparkline(title: str, values: Sequence[float], *, shown: Callable[[float], str] = plain) -> Markup:
    """Return a small chart without axes, for a cell of a table. Its title says the last value and the maximum."""
    most = max(values, default=0)
    width, height = 120, 24
    if not values:
        return Markup('<svg class="spark" viewBox="0 0 {} {}" role="img" aria-label="{}: no data"></svg>').format(
            width, height, title
        )
    step = width / max(len(values) - 1, 1)
    points = [(at * step, height - 2 - (height - 4) * (value / most if most else 0)) for at, value in enumerate(values)]
    if len(points) == 1:
        points.append((width, points[0][1]))
    summary = f"{title}: {shown(values[-1])} now, at most {shown(most)}"
    return Markup(
        '<svg class="spark" viewBox="0 0 {w} {h}" role="img" aria-label="{summary}"><title>{summary}</title>'
        '<path class="line line-0" fill="none" d="{d}"/></svg>'
    ).format(w=width, h=height, summary=summary, d=_path(points))


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where times and values are."""

    begin: datetime
    end: datetime
    most: float

    def x(self, at: datetime) -> float:
        share = (at - self.begin) / (self.end - self.begin)
        return _LEFT + min(max(share, 0.0), 1.0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - value / self.most * (_HEIGHT - _BOTTOM - _TOP)


def _steps(most: float) -> list[float]:
    """Return the values of the axis: round ones, from 0 to at least the maximum, or to 1 if all are 0."""
    most = most or 1.0
    raw = most / _TICKS
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999999)
    return [step * n for n in range(_TICKS + 1) if step * (n - 1) < most or n < 2]


def _grid(frame: _Frame, steps: Sequence[float], shown: Callable[[float], str]) -> Iterator[Markup]:
    for value in steps:
        y = _number(frame.y(value))
        yield Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(_LEFT, _WIDTH - _RIGHT, y=y)
        yield Markup('<text class="tick" x="{}" y="{}" dy="4" text-anchor="end">{}</text>').format(
            _LEFT - 6, y, shown(value) if value else "0"
        )


def _time_axis(frame: _Frame) -> Iterator[Markup]:
    minutes = (frame.end - frame.begin).total_seconds() / 60
    step = timedelta(minutes=next((n for n in _MINUTES if minutes / n <= _TIMES), _MINUTES[-1]))
    first = datetime.fromtimestamp(
        math.ceil(frame.begin.timestamp() / step.total_seconds()) * step.total_seconds(), UTC
    )
    form = "%m-%d" if step >= timedelta(days=1) else "%H:%M"
    at = first
    while at <= frame.end:
        yield Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            _number(min(max(frame.x(at), _LEFT + 14), _WIDTH - _RIGHT - 14)), _HEIGHT - 6, at.strftime(form)
        )
        at += step


def _marks(frame: _Frame, marks: Sequence[Mark]) -> Iterator[Markup]:
    for mark in marks:
        if not frame.begin <= mark.at <= frame.end:
            continue
        x = frame.x(mark.at)
        is_left = x > _WIDTH * 0.75
        yield Markup(
            '<g class="mark"><title>{label}, {at}</title><line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'
            '<text x="{tx}" y="{ty}" text-anchor="{anchor}">{label}</text></g>'
        ).format(
            label=mark.label,
            at=f"{mark.at.astimezone(UTC):%Y-%m-%d %H:%M}Z",
            x=_number(x),
            tx=_number(x + (-4 if is_left else 4)),
            ty=_TOP,
            top=_TOP - 8,
            bottom=_HEIGHT - _BOTTOM,
            anchor="end" if is_left else "start",
        )


def _line(frame: _Frame, times: Sequence[datetime], line: Line, number: int) -> Iterator[Markup]:
    for run in _runs(times, line.values):
        points = [(frame.x(at), frame.y(value)) for at, value in run]
        if len(points) == 1:
            x, y = map(_number, points[0])
            yield Markup('<circle class="line line-{}" cx="{}" cy="{}" r="2"/>').format(number, x, y)
            continue
        if number == 0:
            floor = _number(frame.y(0))
            area = f"{_path(points)} V {floor} H {_number(points[0][0])} Z"
            yield Markup('<path class="area" fill="none" d="{}"/>').format(area)
        yield Markup('<path class="line line-{}" fill="none" d="{}"/>').format(number, _path(points))


def _runs(times: Sequence[datetime], values: Sequence[float | None]) -> Iterator[list[tuple[datetime, float]]]:
    """Yield the parts of a line between gaps."""
    distances = sorted(later - earlier for earlier, later in pairwise(times))
    usual = distances[len(distances) // 2] if distances else timedelta(0)
    run: list[tuple[datetime, float]] = []
    for at, value in zip(times, values, strict=True):
        if run and (value is None or at - run[-1][0] > usual * _GAP):
            yield run
            run = []
        if value is not None:
            run.append((at, value))
    if run:
        yield run


def _hits(
    frame: _Frame, times: Sequence[datetime], lines: Sequence[Line], shown: Callable[[float], str]
) -> Iterator[Markup]:
    """Yield invisible columns, which say the values below the pointer."""
    width = (_WIDTH - _LEFT - _RIGHT) / max(len(times), 1)
    for at, moment in enumerate(times):
        text = ", ".join(_value(line.name, line.values[at], shown) for line in lines)
        yield Markup(
            '<rect class="hit" fill="none" pointer-events="all" x="{}" y="{}" width="{}" height="{}">'
            "<title>{}: {}</title></rect>"
        ).format(
            _number(max(frame.x(moment) - width / 2, _LEFT)),
            _TOP,
            _number(width),
            _HEIGHT - _TOP - _BOTTOM,
            _moment(moment),
            text,
        )


def _legend(lines: Sequence[Line]) -> Markup:
    if len(lines) < 2:
        return Markup()
    return Markup().join(
        Markup(' <span class="legend line-{}">{}</span>').format(number, line.name) for number, line in enumerate(lines)
    )


def _table(times: Sequence[datetime], lines: Sequence[Line], shown: Callable[[float], str]) -> Markup:
    heading = Markup().join(Markup('<th scope="col">{}</th>').format(line.name) for line in lines)
    rows = [
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            _moment(at),
            Markup().join(
                Markup("<td>{}</td>").format("" if (value := line.values[row]) is None else shown(value))
                for line in lines
            ),
        )
        for row, at in reversed(list(enumerate(times)))
    ]
    return Markup(
        '<details class="numbers"><summary>Numbers</summary><div class="scroll"><table><thead><tr>'
        '<th scope="col">time (UTC)</th>{}</tr></thead><tbody>{}</tbody></table></div></details>'
    ).format(heading, Markup().join(rows))


def _summary(line: Line, shown: Callable[[float], str]) -> str:
    known = [value for value in line.values if value is not None]
    return f"{line.name} {shown(known[-1])}, at most {shown(max(known))}" if known else f"{line.name}: no data"


def _value(name: str, value: float | None, shown: Callable[[float], str]) -> str:
    return f"{name} {'unknown' if value is None else shown(value)}"


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M " + " L ".join(f"{_number(x)} {_number(y)}" for x, y in points)


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
