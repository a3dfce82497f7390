"""Writes docs/benchmarks.md and its chart, in plain SVG."""

import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape

from benchmarks.measure import Table
from tests.support.project import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
CHART = ROOT / "docs" / "benchmarks-queue.svg"
BEGIN, END = "<!-- written by benchmarks.queue -->\n", "<!-- end of what benchmarks.queue writes -->"

WIDTH, LEFT, RIGHT = 900, 190, 170
COLOURS = ("#0b5394", "#7f7f7f", "#c55a11", "#6a8f3c", "#8e5ea2", "#b8860b")


class Drawing:
    """An SVG that grows downwards; dark on white, every panel with a title and labelled axes."""

    def __init__(self) -> None:
        self._shapes: list[str] = []
        self._y = 10.0

    def text(self, x: float, y: float, words: str, size: int = 12, anchor: str = "start", weight: str = "normal"):
        style = f'font-size="{size}" text-anchor="{anchor}" font-weight="{weight}"'
        self._shapes.append(f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>')

    def line(self, points: list[tuple[float, float]], colour: str = "#222", width: float = 1, dash: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = f'stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash or "none"}" fill="none"'
        self._shapes.append(f'<polyline points="{path}" {style}/>')

    def _title(self, words: str) -> None:
        self._y += 28
        self.text(20, self._y, words, size=15, weight="bold")
        self._y += 12

    def bars(self, title: str, axis: str, rows: list[tuple[str, float, str, str]], ticks: list[float]) -> None:
        """Draw horizontal bars: label, value, what stands beside it, colour."""
        self._title(title)
        top, scale = self._y, (WIDTH - LEFT - RIGHT) / ticks[-1]
        bottom = top + 24 * len(rows) + 6
        for tick in ticks:
            self.line([(LEFT + tick * scale, top), (LEFT + tick * scale, bottom)], "#ddd")
            self.text(LEFT + tick * scale, bottom + 15, f"{tick:,g}", size=11, anchor="middle")
        for place, (label, value, beside, colour) in enumerate(rows):
            y, width = top + 6 + 24 * place, max(1.0, min(value, ticks[-1]) * scale)
            self._shapes.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="16" fill="{colour}"/>')
            self.text(LEFT - 8, y + 13, label, anchor="end")
            self.text(LEFT + width + 6, y + 13, beside)
        self.line([(LEFT, top), (LEFT, bottom), (WIDTH - RIGHT, bottom)])
        self.text((LEFT + WIDTH - RIGHT) / 2, bottom + 32, axis, anchor="middle")
        self._y = bottom + 44

    def curves(self, title: str, x_axis: str, y_axis: str, given: dict[str, list[tuple[float, float]]]) -> None:
        """Draw lines, in per cent of where each began, with a legend at their ends."""
        self._title(title)
        top, height = self._y + 6, 200
        most = max(x for points in given.values() for x, _ in points)
        highest = max(120, *(y for points in given.values() for _, y in points))
        x_scale, y_scale = (WIDTH - LEFT - RIGHT) / most, height / highest
        for tick in range(0, int(highest) + 1, 25):
            y = top + height - tick * y_scale
            self.line([(LEFT, y), (WIDTH - RIGHT, y)], "#222" if tick == 0 else "#ddd")
            self.text(LEFT - 8, y + 4, f"{tick}%", size=11, anchor="end")
        for tick in range(0, int(most) + 1, 20_000):
            self.text(LEFT + tick * x_scale, top + height + 15, f"{tick:,}", size=11, anchor="middle")
        self.line([(LEFT, top), (LEFT, top + height)])
        asked = top + height - 50 * y_scale
        self.line([(LEFT, asked), (WIDTH - RIGHT, asked)], "#a00", dash="5 4")
        self.text(LEFT + 6, asked - 4, "asked: 50%", size=11)
        taken: list[float] = []
        for (name, points), colour in zip(given.items(), COLOURS, strict=False):
            self.line([(LEFT + x * x_scale, top + height - y * y_scale) for x, y in points], colour, 2.5)
            at = top + height - points[-1][1] * y_scale + 4
            while any(abs(at - other) < 15 for other in taken):
                at -= 5
            taken.append(at)
            self.text(WIDTH - RIGHT + 6, at, f"{name} {points[-1][1]:.0f}%")
        self.text((LEFT + WIDTH - RIGHT) / 2, top + height + 32, x_axis, anchor="middle")
        self.text(WIDTH - RIGHT, top - 8, y_axis, anchor="end")
        self._y = top + height + 44

    def svg(self) -> str:
        height = self._y + 14
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}"'
        style = 'font-family="Helvetica, Arial, sans-serif" fill="#222"'
        ground = f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>'
        return "\n".join([f'{head} height="{height:.0f}" {style}>', ground, *self._shapes, "</svg>\n"])


def ticks(most: float) -> list[float]:
    """Return round values from 0 to a bit more than the most."""
    step = next(s * 10**e for e in range(-3, 9) for s in (1, 2, 5) if s * 10**e * 6 >= most)
    return [step * number for number in range(int(most / step) + 2)]


@dataclass
class Report:
    """What the chart shows: jobs a second, milliseconds, and (jobs, jobs a second) under a held snapshot."""

    throughput: dict[str, float] = field(default_factory=dict)
    latency: dict[str, dict[str, float]] = field(default_factory=dict)
    snapshot: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def chart(self) -> str:
        """Return the chart; the first subject of each panel is ours."""
        drawing = Drawing()
        ours = next(iter(self.throughput.values()))
        rows = [
            (name, value, f"{value:,.0f}" + (f"  (ours: {ours / value:.2g}x)" if place else ""), COLOURS[min(place, 1)])
            for place, (name, value) in enumerate(self.throughput.items())
        ]
        asked = "jobs a second, no-op, one worker process (more is better)"
        drawing.bars("Throughput", asked, rows, ticks(max(self.throughput.values())))
        rows = []
        for place, (name, found) in enumerate(self.latency.items()):
            for what, shade in (("p50", ("#0b5394", "#7f7f7f")), ("p99", ("#6fa8dc", "#c0c0c0"))):
                mine = next(iter(self.latency.values()))[what]
                ratio = f"  (ours: {mine / found[what]:.2g}x)" if place else ""
                rows.append((f"{name}, {what}", found[what], f"{found[what]:.1f}{ratio}", shade[min(place, 1)]))
        most = max(value for _, value, _, _ in rows)
        drawing.bars("Latency at 100 jobs a second", "ms from enqueue to handled (less is better)", rows, ticks(most))
        shares = {
            name: [(jobs, 100 * per_s / median_of_first(points)) for jobs, per_s in points]
            for name, points in self.snapshot.items()
        }
        drawing.curves("Under a held snapshot", "jobs handled since it was taken", "share of the starting rate", shares)
        return drawing.svg()

    def write(self, table: Table, versions: dict[str, str]) -> None:
        """Write the chart and what the page says of this run; what people wrote around it stays."""
        CHART.write_text(self.chart())
        used = ", ".join(f"{name} {number.split()[0]}" for name, number in versions.items())
        missed = [f"- {row}" for row in table.missed()] or ["- nothing"]
        written = [
            f"Measured on {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores, shared with other work:",
            f"{used}.",
            f"Load average at the end, this benchmark included: {os.getloadavg()[0]:.1f}.",
            "`fsync` and `synchronous_commit` were on.\n",
            "![Throughput, latency, and the rate under a held snapshot](benchmarks-queue.svg)\n",
            *table.lines(),
            "\nMissed in this run:\n",
            *missed,
        ]
        before, after = _around()
        PAGE.write_text(before + BEGIN + "\n".join(written) + "\n" + END + after)


def median_of_first(points: list[tuple[float, float]]) -> float:
    """Return the starting rate."""
    return sorted(per_s for _, per_s in points[:3])[len(points[:3]) // 2]


def _around() -> tuple[str, str]:
    page = PAGE.read_text() if PAGE.exists() else f"# Benchmarks\n\n{BEGIN}{END}\n"
    before, _, after = re.split(f"({re.escape(BEGIN)}.*?{re.escape(END)})", page, maxsplit=1, flags=re.DOTALL)
    return before, after
