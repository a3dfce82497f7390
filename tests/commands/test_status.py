"""`app status`: is it well, and if not, what to do; on a terminal, in a pipe, as JSON, and while watched."""

import fcntl
import json
import re
import signal
import struct
import termios

import pytest

from tests.commands.outcome import printed_json
from tests.commands.terminal import INTERRUPT, Terminal, terminal
from tests.conftest import Holder, TestDatabase
from tests.support.project import Project, eventually

PROCESS = """
    INSERT INTO kernel.processes (id, name, version, host, pid, state, services, started_at, last_seen_at)
    SELECT gen_random_uuid(), 'run-event-consumer', '1.2.3', 'web-1', 7, 'ready', '{}', now(), now() + interval '1 hour'
"""
DUE = """
    INSERT INTO kernel.jobs (id, queue, task, max_attempts, timeout_s, rank, run_at)
    VALUES (gen_random_uuid(), 'nobody', 't', 1, 1, 1, now() - interval '1 hour')
"""
FIX = "fix: app run-event-consumer --queue nobody"


@pytest.fixture
def emptied(migrated: TestDatabase) -> TestDatabase:
    migrated.run("TRUNCATE kernel.processes, kernel.jobs, kernel.errors, kernel.series")
    return migrated


def test_all_is_well_and_the_status_is_0(on_migrated: Project, emptied: TestDatabase) -> None:
    emptied.run(PROCESS)
    done = on_migrated.app("status")
    assert done.returncode == 0, done.stderr
    assert re.match(r"app test: all is well, \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ\n", done.stdout)
    assert re.search(r"run-event-consumer +1 +ready", done.stdout)
    found = printed_json(on_migrated.app("status", "--json"))
    assert (found["is_well"], found["attention"], found["processes"][0]["version"]) == (True, [], "1.2.3")
    assert on_migrated.app("status", "--web").stdout.endswith("/console/overview\n")


def test_something_is_wrong_and_the_status_is_1_with_the_fix(on_migrated: Project, emptied: TestDatabase) -> None:
    emptied.run(DUE)
    done = on_migrated.app("status", env={"COLUMNS": "40"})
    assert done.returncode == 1
    assert "app test: 1 thing needs attention" in done.stdout
    assert f"\n  {FIX}\n" in done.stdout
    as_json = on_migrated.app("status", "--json")
    assert as_json.returncode == 1
    assert [need["check"] for need in json.loads(as_json.stdout)["attention"]] == ["queues"]


@pytest.mark.parametrize(("columns", "plain"), [(80, True), (80, False), (160, True)])
def test_a_terminal_shows_it_on_one_screen(
    on_migrated: Project, emptied: TestDatabase, columns: int, plain: bool
) -> None:
    emptied.run(DUE)
    emptied.run(PROCESS)
    for n in range(8):
        emptied.run("INSERT INTO kernel.queues (name) VALUES (%s) ON CONFLICT DO NOTHING", f"queue-{n}")
    emptied.run(
        "INSERT INTO kernel.series VALUES ('minute', now(), now(), 60, %s, '{}')",
        json.dumps({"requests": 600, "requests_le_0.1": 600}),
    )
    with terminal(on_migrated, "status", columns=columns, env={"NO_COLOR": "1"} if plain else None) as shown:
        assert shown.wait() == 1, shown.seen
    assert ("\x1b[" in shown.seen) != plain
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.seen).splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) <= 24
    assert lines[0].startswith("app test: 1 thing needs attention")
    assert f"  {FIX}" in lines
    assert any(re.match(r"last hour +10 ", line) for line in lines)
    assert any(line.startswith("run-event-consumer") for line in lines)
    assert any(re.match(r"and \d+ more queues: app queues list", line) for line in lines)


def resize(shown: Terminal, columns: int, rows: int) -> None:
    fcntl.ioctl(shown._main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    shown.popen.send_signal(signal.SIGWINCH)


def test_watching_survives_an_outage_and_another_size_and_ends_with_ctrl_c(
    cli: Project, own_holder: Holder, own_database: TestDatabase
) -> None:
    cli.env |= own_database.env
    assert cli.app("migrate", "up").returncode == 0
    with terminal(cli, "status", "--watch") as shown:
        shown.expect("all is well")
        shown.seen = ""
        resize(shown, 50, 12)
        shown.expect("all is well", 10)
        own_holder.stop()
        shown.expect("trying again", 20)
        own_holder.start()
        own_database.run(DUE)
        shown.expect(FIX, 30)
        shown.press(INTERRUPT)
        assert shown.wait() == 130
    assert "Traceback" not in shown.seen
    assert "\x1b[?1049l" in shown.seen  # the screen of before is back


def test_a_terminal_that_cannot_move_its_cursor_gets_one_overview_below_the_other(
    on_migrated: Project, emptied: TestDatabase
) -> None:
    emptied.run(PROCESS)
    with terminal(on_migrated, "status", "--watch", env={"TERM": "dumb"}) as shown:
        shown.expect("all is well")
        shown.seen = ""
        shown.expect("all is well", 10)
        shown.press(INTERRUPT)
        assert shown.wait() == 130
    assert "\x1b" not in shown.seen


def test_watching_as_json_prints_one_document_a_line(on_migrated: Project, emptied: TestDatabase) -> None:
    emptied.run(PROCESS)
    running = on_migrated.start("status", "--watch", "--json")
    lines = eventually(lambda: found if len(found := running.output.read_text().splitlines()) > 1 else None)
    first, second = (json.loads(line) for line in lines[:2])
    assert first["at"] < second["at"]
    running.signal(signal.SIGINT)
    assert running.wait() == 130
