"""`docs/security.md` is complete, and what it names exists."""

import ast
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest

from tests.support.project import ROOT

# The requirements of the OWASP Application Security Verification Standard 5.0.0, chapters V6 to V9, by section: one
# digit for the level of each. From https://github.com/OWASP/ASVS (5.0/docs_en), CC BY-SA 4.0.
LEVELS = {
    "6.1": "122",
    "6.2": "111111112222",
    "6.3": "11223333",
    "6.4": "112233",
    "6.5": "22222333",
    "6.6": "2223",
    "6.7": "33",
    "6.8": "2222",
    "7.1": "222",
    "7.2": "1111",
    "7.3": "22",
    "7.4": "11222",
    "7.5": "223",
    "7.6": "22",
    "8.1": "1233",
    "8.2": "1123",
    "8.3": "133",
    "8.4": "23",
    "9.1": "111",
    "9.2": "1222",
}
REQUIREMENTS = {
    f"{section}.{number}": level for section, levels in LEVELS.items() for number, level in enumerate(levels, 1)
}
STATUSES = ("met", "partly", "not met", "does not apply")
DOCUMENT = (ROOT / "docs" / "security.md").read_text()
REFERENCE = re.compile(r"`(tests/[^`]*::[^`]*)`")


class Row(NamedTuple):
    id: str
    level: str
    asks: str
    status: str
    reason: str
    tests: str


def problems(text: str) -> list[str]:
    """Return what is wrong with the page."""
    table = [line for line in text.splitlines() if re.match(r"\|\s*\d", line)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    found = [f"not {len(Row._fields)} cells: {row}" for row in cells if len(row) != len(Row._fields)]
    rows = [Row(*row) for row in cells if len(row) == len(Row._fields)]
    times = Counter(row.id for row in rows)
    found += [f"{id_} is missing" for id_ in REQUIREMENTS if not times[id_]]
    found += [f"{id_} stands {number} times" for id_, number in times.items() if number > 1]
    for row in rows:
        found += [f"{row.id}: {problem}" for problem in wrong_in(row)]
    found += [problem for reference in REFERENCE.findall(text) if (problem := wrong_with(reference))]
    return found


def wrong_in(row: Row) -> list[str]:
    found: list[str] = []
    if row.id not in REQUIREMENTS:
        return ["there is no such requirement"]
    if row.level != REQUIREMENTS[row.id]:
        found.append(f"its level is {REQUIREMENTS[row.id]}")
    if row.status not in STATUSES:
        found.append(f"{row.status!r} is no status")
    if row.status in ("met", "partly") and not REFERENCE.search(row.tests):
        found.append(f"{row.status} without a test")
    if row.status != "met" and len(row.reason.split()) < 3:
        found.append(f"{row.status} without a reason")
    if not row.asks:
        found.append("it does not say what is asked for")
    if REFERENCE.sub("", row.tests).replace("<br>", "").strip():
        found.append("something else than tests is said to show it")
    return found


def wrong_with(reference: str) -> str:
    """Return why the test that is named does not run; nothing if it does."""
    path, *names = reference.split("::")
    if not re.fullmatch(r"tests/(\w+/)*test_\w+\.py", path) or not (ROOT / path).is_file():
        return f"{reference}: there is no such file"
    if len(names) not in (1, 2) or not names[-1].startswith("test_"):
        return f"{reference}: that is no test"
    scope: ast.Module | ast.ClassDef = parsed(path)
    if never_runs(scope):
        return f"{reference}: its file is skipped"
    for name in names:
        is_last = name is names[-1]
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef) if is_last else (ast.ClassDef,)
        node = next((n for n in reversed(scope.body) if isinstance(n, kinds) and n.name == name), None)
        if node is None:
            return f"{reference}: there is no {name}"
        if never_runs(node):
            return f"{reference}: {name} is skipped"
        if isinstance(node, ast.ClassDef):
            scope = node
    return ""


@cache
def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def never_runs(node: ast.AST) -> bool:
    """Return whether it is skipped, or expected to fail, under no condition."""
    marks: list[ast.expr] = list(getattr(node, "decorator_list", []))
    for statement in getattr(node, "body", []):
        if isinstance(statement, ast.Expr) and _called(statement.value) in ("pytest.skip", "pytest.xfail"):
            return True
        if isinstance(statement, ast.Assign) and any(ast.unparse(to) == "pytestmark" for to in statement.targets):
            value = statement.value
            marks += value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
    return any(_is_skip(mark) for mark in marks)


def _called(node: ast.expr) -> str:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node)


def _is_skip(mark: ast.expr) -> bool:
    name = _called(mark).removeprefix("pytest.mark.")
    if name not in ("skip", "skipif", "xfail"):
        return False
    conditions: list[ast.expr] = []
    if isinstance(mark, ast.Call):
        conditions = [*mark.args, *(keyword.value for keyword in mark.keywords if keyword.arg == "condition")]
    always = any(isinstance(condition, ast.Constant) and bool(condition.value) for condition in conditions)
    return name == "skip" or always or not conditions


def test_the_page_is_complete_and_names_tests_that_run() -> None:
    assert problems(DOCUMENT) == []
    assert len(REQUIREMENTS) == 86


NAMED = "tests/modules/auth/test_domain.py::test_weak_passwords_are_refused"
MET = f"| 6.2.1 | 1 | Passwords have at least 8 characters | met | 8 to 256 | `{NAMED}` |"
NOT_MET = "| 7.5.3 | 3 | More factors | not met | nobody is asked for more | |"
OTHER = "| 6.6.2 | 2 | One request each | does not apply | there is nothing of that | |"
PARTLY = f"| 6.2.8 | 1 | As received | partly | whole, but in NFC | `{NAMED}` |"


@pytest.mark.parametrize(
    ("row", "old", "new", "problem"),
    [
        (MET, MET, "", "6.2.1 is missing"),
        (MET, MET, f"{MET}\n{MET}", "6.2.1 stands 2 times"),
        (MET, "6.2.1", "6.2.13", "no such requirement"),
        (MET, "| 1 |", "| 2 |", "its level is 1"),
        (MET, "| met |", "| mostly |", "'mostly' is no status"),
        (MET, "| met |", "| |", "'' is no status"),
        (MET, f"`{NAMED}`", "", "met without a test"),
        (MET, f"`{NAMED}`", "by reading the code", "met without a test"),
        (MET, f"`{NAMED}`", f"`{NAMED}` and by hand", "something else than tests"),
        (MET, "8 to 256", "8 | 256", "not 6 cells"),
        (MET, "Passwords have at least 8 characters", "", "does not say what is asked"),
        (MET, "test_domain.py", "test_nothing.py", "there is no such file"),
        (MET, "test_weak", "test_strong", "there is no test_strong_passwords_are_refused"),
        (MET, "test_weak_passwords_are_refused", "username_key", "that is no test"),
        (MET, MET, f"{MET}\nSee `tests/test_gone.py::test_gone`.", "there is no such file"),
        (PARTLY, f"`{NAMED}`", "", "partly without a test"),
        (PARTLY, "whole, but in NFC", "", "partly without a reason"),
        (NOT_MET, "nobody is asked for more", "", "not met without a reason"),
        (OTHER, "there is nothing of that", "no", "does not apply without a reason"),
    ],
)
def test_each_check_of_the_page_can_fail(row: str, old: str, new: str, problem: str) -> None:
    good = f"{MET}\n{PARTLY}\n{NOT_MET}\n{OTHER}"
    assert [found for found in problems(good) if not found.endswith(" is missing")] == []
    broken = good.replace(row, row.replace(old, new, 1))
    assert [found for found in problems(broken) if problem in found and found not in problems(good)], problems(broken)


@pytest.mark.parametrize(
    ("source", "skipped"),
    [
        ("def test_a(): ...", False),
        ("@pytest.mark.skip\ndef test_a(): ...", True),
        ("@pytest.mark.skip(reason='later')\ndef test_a(): ...", True),
        ("@pytest.mark.skipif(True, reason='later')\ndef test_a(): ...", True),
        ("@pytest.mark.skipif(sys.platform == 'win32', reason='later')\ndef test_a(): ...", False),
        ("@pytest.mark.xfail\ndef test_a(): ...", True),
        ("@pytest.mark.parametrize('a', [1])\ndef test_a(a): ...", False),
        ("def test_a():\n    pytest.skip('later')", True),
        ("def test_a():\n    if not nginx:\n        pytest.skip('no nginx')", False),
        ("pytestmark = pytest.mark.skip\ndef test_a(): ...", True),
        ("pytestmark = [pytest.mark.slow]\ndef test_a(): ...", False),
        ("pytest.skip('later', allow_module_level=True)\ndef test_a(): ...", True),
    ],
)
def test_a_test_that_is_always_skipped_shows_nothing(source: str, skipped: bool) -> None:
    module = ast.parse(source)
    assert (never_runs(module) or never_runs(module.body[-1])) is skipped


def test_a_method_is_named_with_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "class TestA:\n    def test_b(self): ...\n    @pytest.mark.skip\n    def test_c(self): ...\ndef helper(): ..."
    )
    path = "tests/test_security_doc.py"
    this: Callable[[str], ast.Module] = lambda _: ast.parse(source)  # noqa: E731
    monkeypatch.setitem(globals(), "parsed", this)
    assert wrong_with(f"{path}::TestA::test_b") == ""
    assert "is skipped" in wrong_with(f"{path}::TestA::test_c")
    for wrong in (f"{path}::test_b", f"{path}::TestB::test_b", f"{path}::TestA", f"{path}::helper", path):
        assert wrong_with(wrong)
