"""Shows the results of checks: to people, in at most 80 columns of a terminal, and to programs."""

import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from app.kernel.cli.tables import harmless
from app.kernel.doctor import Result, Status
from app.kernel.doctor.deployment import Deployment
from app.kernel.telemetry.redact import redacted
from app.kernel.text import allows_colour

_SYMBOLS: dict[Status, str] = {"ok": "\N{CHECK MARK}", "warn": "!", "fail": "\N{BALLOT X}", "skip": "-"}
_COLOURS: dict[Status, str] = {"ok": "32", "warn": "33", "fail": "31", "skip": "90"}
_WIDTH = 80
_INDENT = 9
_ORDER: tuple[Status, ...] = ("fail", "warn", "skip", "ok")


def status_of(results: Sequence[Result]) -> Status:
    """Return the worst status: ok, warn or fail."""
    found = {result.status for result in results}
    return "fail" if "fail" in found else "warn" if "warn" in found else "ok"


def as_dict(deployment: Deployment, results: Sequence[Result]) -> dict[str, Any]:
    """Return the results for JSON."""
    return {
        "environment": deployment.environment,
        "status": status_of(results),
        "counts": {status: sum(r.status == status for r in results) for status in ("ok", "warn", "fail", "skip")},
        "checks": [
            {
                "name": result.check.name,
                "group": result.check.group,
                "status": result.status,
                "reason": result.reason,
                "findings": [
                    {
                        "level": finding.level,
                        "problem": redacted(finding.problem),
                        "fix": finding.fix,
                        "fixable": finding.repair is not None,
                    }
                    for finding in result.findings
                ],
            }
            for result in results
        ],
    }


def print_results(deployment: Deployment, results: Sequence[Result]) -> None:
    """Print the problems by group, what was skipped, and a summary."""
    lines: list[str] = []
    for group in dict.fromkeys(result.check.group for result in results if result.status != "skip"):
        members = [result for result in results if result.check.group == group]
        fine = [result.check.name for result in members if result.status == "ok"]
        lines += [group, *(line for result in members for line in _lines(result))]
        lines += _item("ok", ", ".join(fine)) if fine else []
    skipped = [result for result in results if result.status == "skip"]
    lines += ["not checked"] if skipped else []
    for reason in dict.fromkeys(result.reason for result in skipped):
        lines += _item("skip", f"{', '.join(r.check.name for r in skipped if r.reason == reason)}: {reason}")
    counts = Counter(result.status for result in results)
    told = ", ".join(f"{counts[status]} {_word(status, counts[status])}" for status in _ORDER if counts[status])
    lines += ["", f"APP_ENV={deployment.environment}: {len(results)} check{'s' if len(results) > 1 else ''}: {told}"]
    sys.stdout.write("\n".join(lines) + "\n")


def _word(status: Status, count: int) -> str:
    return {"fail": "failed", "warn": "warning" + "s" * (count > 1), "skip": "skipped", "ok": "ok"}[status]


def _lines(result: Result) -> list[str]:
    lines: list[str] = []
    for finding in result.findings:
        lines += _item(finding.level, f"{result.check.name}: {redacted(finding.problem)}")
        lines.append(f"{' ' * _INDENT}fix: {harmless(finding.fix)}")  # whole, to be copied
    return lines


def _item(status: Status, text: str) -> list[str]:
    """Return a symbol, the word and the text, wrapped on a terminal."""
    symbol = _SYMBOLS[status] if harmless(_SYMBOLS[status]) == _SYMBOLS[status] else "*"
    mark = f"{symbol} {status:<4}"
    if allows_colour(sys.stdout.isatty()):
        mark = f"\x1b[{_COLOURS[status]}m{mark}\x1b[0m"
    text = harmless(text)
    if not sys.stdout.isatty():
        return [f"  {mark} {text}"]
    width = min(_WIDTH, shutil.get_terminal_size().columns)
    first, *more = textwrap.wrap(text, max(width - _INDENT, 20), break_on_hyphens=False) or [""]
    return [f"  {mark} {first}", *(f"{' ' * _INDENT}{line}" for line in more)]
