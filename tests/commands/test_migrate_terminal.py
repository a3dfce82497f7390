"""`app migrate` on a terminal: its table, its question; and without a server."""

import re

import pytest

from tests.commands.outcome import misused
from tests.commands.terminal import INTERRUPT, terminal
from tests.conftest import TestDatabase
from tests.support.project import ROOT, Project

IDS = sorted(path.stem for path in (ROOT / "migrations").glob("*.sql") if not path.stem.endswith(".rollback"))
APPLIED = "SELECT count(*) FROM _migrations"


def test_status_in_a_pipe_is_a_line_for_each_migration(on_migrated: Project) -> None:
    heading, *lines = on_migrated.app("migrate", "status").stdout.splitlines()
    assert heading.split() == ["migration", "state", "applied", "at"]
    assert [line.split()[:2] for line in lines] == [[name, "applied"] for name in IDS]
    assert all(re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ$", line) for line in lines)


@pytest.mark.parametrize("columns", [60, 80])
def test_status_fits_a_narrow_terminal_and_loses_nothing(on_migrated: Project, columns: int) -> None:
    with terminal(on_migrated, "migrate", "status", env={"NO_COLOR": "1"}, columns=columns) as shown:
        assert shown.wait() == 0
    lines = shown.seen.splitlines()
    assert max(map(len, lines)) <= columns
    first_column = lines[0].index("state")
    assert "".join(line[:first_column].strip() for line in lines[1:]) == "".join(IDS)


@pytest.mark.parametrize("options", [[], ["--no-input"], ["--json"]])
def test_rolling_back_is_refused_without_yes_and_without_a_terminal(
    on_migrated: Project, migrated: TestDatabase, options: list[str]
) -> None:
    assert "--yes" in misused(on_migrated.app("migrate", "down", *options))
    assert migrated.all(APPLIED) == [(len(IDS),)]


@pytest.mark.parametrize(("answer", "status"), [("n\n", 1), ("\n", 1), ("what\n", 1), ("\x04", 1), (INTERRUPT, 130)])
def test_rolling_back_asks_and_nothing_happens_unless_the_answer_is_yes(
    on_migrated: Project, migrated: TestDatabase, answer: str, status: int
) -> None:
    with terminal(on_migrated, "migrate", "down") as asked:
        asked.expect("[y/N]: ")
        asked.type(answer)
        assert asked.wait() == status
    assert "Traceback" not in asked.seen
    assert migrated.all(APPLIED) == [(len(IDS),)]


def test_rolling_back_does_not_ask_when_told_never_to(on_migrated: Project, migrated: TestDatabase) -> None:
    with terminal(on_migrated, "migrate", "down", "--no-input") as told:
        assert told.wait() == 2
    assert "[y/N]" not in told.seen
    assert migrated.all(APPLIED) == [(len(IDS),)]


def test_rolling_back_happens_when_the_answer_is_yes(project: Project, database: TestDatabase) -> None:
    with terminal(project, "migrate", "down") as asked:
        asked.expect("[y/N]: ")
        asked.type("yes\n")
        assert asked.wait() == 0
    assert f"rolled back {IDS[-1]}" in asked.seen
    assert database.all(APPLIED) == [(len(IDS) - 1,)]


def test_a_server_that_does_not_answer_is_unavailable(cli: Project) -> None:
    nobody = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": "1", "POSTGRES_STARTUP_TIMEOUT": "1s"}
    done = cli.app("migrate", "status", env=nobody)
    assert (done.returncode, done.stdout) == (69, "")
    *waiting, last, hint = done.stderr.splitlines()
    assert hint == "hint: app doctor --only postgresql"
    assert last.startswith("app: PostgreSQL at 127.0.0.1:1 does not answer: ")
    assert all(" WARNING  waiting for PostgreSQL at 127.0.0.1:1: " in line for line in waiting)
