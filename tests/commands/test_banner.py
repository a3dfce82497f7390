"""The banner of `run-all-in-one`."""

from tests.commands.terminal import INTERRUPT, Terminal, terminal
from tests.conftest import SUPERUSER, TestDatabase
from tests.support.project import ROOT, Project, eventually

CONSOLE = {"LOGGER_FORMAT": "console"}
MIGRATIONS = len(list((ROOT / "migrations").glob("*.rollback.sql")))
RUN = ("run-all-in-one", "--port", "0")


def banner(shown: Terminal) -> list[str]:
    """Return the lines of the banner, between two empty ones."""
    lines = shown.seen.replace("\r", "").split("\n")
    first = next(number for number, line in enumerate(lines) if line.startswith("  app "))
    last = next(number for number, line in enumerate(lines) if line.startswith("  Stop"))
    assert (lines[first - 1], lines[last + 1]) == ("", "")
    return lines[first : last + 1]


def stopped(shown: Terminal) -> None:
    shown.type(INTERRUPT)
    assert shown.wait() == 0, shown.seen


def test_it_says_what_runs_where_and_what_to_do_first(unmigrated: Project, empty_database: TestDatabase) -> None:
    with terminal(unmigrated, *RUN, env={**CONSOLE, "NO_COLOR": "1"}) as shown:
        shown.expect("serving http://")
        stopped(shown)
    found = banner(shown)
    assert len(found) <= 12
    assert max(len(line) for line in found[:6]) < 80
    url = shown.seen.partition("serving ")[2].split()[0]
    texts = {line[2:14].strip(): line[14:] for line in found[2:] if line[2:14].strip()}
    assert texts["Runs"] == "auth and platform API, cron manager, event consumer"
    assert (texts["API"], texts["Reference"]) == (url, f"{url}/docs")
    assert empty_database.server.host in texts["Data"] or texts["Data"].startswith("\N{HORIZONTAL ELLIPSIS}")
    assert texts["Data"].endswith(f"database {empty_database.name}")
    assert texts["Account"] == "none yet; in a second terminal:"
    assert f"    {unmigrated.python} -m app auth create-superuser" in "\n".join(found)
    assert "Ctrl-C" in texts["Stop"]
    assert "\x1b" not in shown.seen
    # in place of a line for each migration
    assert f"schema: {MIGRATIONS} migrations applied" in shown.seen
    assert "applied 2" not in shown.seen

    username, password = SUPERUSER
    made = unmigrated.app("auth", "create-superuser", "--username", username, "--password-stdin", stdin=password)
    assert made.returncode == 0, made.stderr
    with terminal(unmigrated, *RUN, env=CONSOLE) as again:
        again.expect("serving http://")
        stopped(again)
    assert "\x1b[1m  Runs" in again.seen
    assert "create-superuser" not in again.seen
    assert "schema:" not in again.seen


def test_logs_for_programs_have_none(unmigrated: Project) -> None:
    with terminal(unmigrated, *RUN, env={"LOGGER_FORMAT": "json"}) as shown:
        shown.expect("serving http://")
        stopped(shown)
    assert "Reference" not in shown.seen
    assert shown.seen.count('"message":"applied ') == MIGRATIONS


def test_without_a_terminal_there_is_none(unmigrated: Project) -> None:
    process = unmigrated.start(*RUN, env=CONSOLE)
    try:
        eventually(lambda: "serving http://" in process.output.read_text())
    finally:
        assert process.stop() == 0
    said = process.output.read_text()
    assert "Reference" not in said
    assert said.count(" applied ") == MIGRATIONS


def test_other_processes_have_none(unmigrated: Project) -> None:
    with terminal(unmigrated, "run-event-consumer", "--port", "0", env=CONSOLE) as shown:
        shown.expect("health and metrics on http://")
        stopped(shown)
    assert "Reference" not in shown.seen
    assert "serving" not in shown.seen
    assert f"schema: {MIGRATIONS} migrations applied" in shown.seen
