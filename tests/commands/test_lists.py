"""Lists for people: one line a row on a terminal, everything whole in a pipe; short ids, names and counts."""

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from app.kernel.text import relative
from tests.commands.outcome import misused, printed_json, refused
from tests.commands.terminal import terminal
from tests.commands.test_queue import dead_letters, job
from tests.conftest import TestDatabase
from tests.support.project import Project

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
REASON = "failed: RuntimeError: the printer says that there is no paper in any of its trays, and that it wants some"


def on_terminal(project: Project, *args: str, columns: int = 80, plain: bool = True) -> list[str]:
    """Return the lines that a command shows on a terminal."""
    with terminal(project, *args, env={"NO_COLOR": "1"} if plain else None, columns=columns) as shown:
        assert shown.wait() == 0, shown.seen
    return shown.seen.splitlines()


def letter(database: TestDatabase, queue: str) -> str:
    [made] = dead_letters(database, queue, age="3 hours 10 minutes")
    database.run("UPDATE kernel.dead_letters SET reason = %s WHERE id = %s", REASON, made)
    return made


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_a_row_is_one_line_that_fits_the_terminal(on_migrated: Project, migrated: TestDatabase, columns: int) -> None:
    made = letter(migrated, f"w{columns}")
    heading, line = on_terminal(on_migrated, "dead-letters", "list", "--queue", f"w{columns}", columns=columns)
    assert max(len(heading), len(line)) <= columns
    assert line.startswith(made[-8:])
    assert "3 h ago" in line
    assert (REASON in line) == (columns == 160)
    assert (ELLIPSIS in line) == (columns < 160)


def test_a_row_is_one_line_on_a_terminal_without_utf_8(on_migrated: Project, migrated: TestDatabase) -> None:
    made = letter(migrated, "ascii")
    migrated.run("UPDATE kernel.dead_letters SET reason = repeat('\u7d19', 60) WHERE id = %s", made)
    env = {"NO_COLOR": "1", "PYTHONIOENCODING": "ascii"}
    with terminal(on_migrated, "dead-letters", "list", "--queue", "ascii", env=env) as shown:
        assert shown.wait() == 0, shown.seen
    lines = shown.seen.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(made[-8:])
    assert "\\u7d19" in lines[1]
    assert all(len(line) <= 80 for line in lines)


def test_a_pipe_gets_whole_ids_times_and_texts(on_migrated: Project, migrated: TestDatabase) -> None:
    made = letter(migrated, "piped")
    done = on_migrated.app("dead-letters", "list", "--queue", "piped", env={"COLUMNS": "40"})
    _, line = done.stdout.splitlines()
    assert line.startswith(f"{made}  greet  piped  3")
    assert re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  ", line)
    assert line.endswith(REASON)


@pytest.mark.parametrize("how", ["--json", "--csv", "--limit=1"])
def test_a_terminal_gets_no_control_characters_of_other_people(
    on_migrated: Project, migrated: TestDatabase, how: str
) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e[/red]"
    made = letter(migrated, f"hostile{how}")
    migrated.run("UPDATE kernel.dead_letters SET reason = %s WHERE id = %s", hostile, made)
    shown = "\n".join(on_terminal(on_migrated, "dead-letters", "list", f"--queue=hostile{how}", how, columns=200))
    assert "owned" in shown
    assert "[/red]" in shown
    assert set(shown).isdisjoint("\x1b\x07\x9b\u202e")
    if how == "--json":
        printed = printed_json(on_migrated.app("dead-letters", "list", f"--queue=hostile{how}", how))
        assert printed["items"][0]["reason"] == hostile


@pytest.mark.parametrize(("plain", "escape"), [(True, False), (False, True)])
def test_states_have_a_colour_unless_none_is_wanted(
    on_migrated: Project, migrated: TestDatabase, plain: bool, escape: bool
) -> None:
    job(migrated, "coloured", "leased")
    _, line, *_ = on_terminal(on_migrated, "jobs", "list", "--queue", "coloured", plain=plain)
    assert ("\x1b[33mleased" in line) == escape
    assert ("\x1b" in line) == escape


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "now"), (-59, "59 s ago"), (-60, "1 min ago"), (7200, "in 2 h"), (-86400, "1 d ago"),
        (-101 * 86400, "2026-08-13"),
    ],
)  # fmt: skip
def test_a_time_is_said_as_people_say_it(seconds: int, said: str) -> None:
    now = datetime(2026, 11, 22, 10, tzinfo=UTC)
    assert relative(now + timedelta(seconds=seconds), now) == said


# Identifiers


def test_the_end_or_the_beginning_of_an_id_is_enough(on_migrated: Project, migrated: TestDatabase) -> None:
    made = job(migrated, "short")
    _, line, *_ = on_terminal(on_migrated, "jobs", "list", "--queue", "short")
    short = line.split()[0]
    assert made.endswith(short)
    for part in (short, short.upper(), made[:20], made.replace("-", "")[:17], made):
        assert printed_json(on_migrated.app("jobs", "show", part, "--json"))["id"] == made
    assert on_migrated.app("jobs", "cancel", short).stdout == f"{made} is cancelled\n"
    buried = letter(migrated, "short")
    assert printed_json(on_migrated.app("dead-letters", "retry", buried[-8:], "--json"))["id"] == buried
    assert f"is no dead letter {buried}" in refused(on_migrated.app("dead-letters", "show", buried), 67)


def test_a_part_of_several_ids_is_refused_with_the_ids_and_changes_nothing(
    on_migrated: Project, migrated: TestDatabase
) -> None:
    ids = [f"0190b3a0-0000-7000-8000-00000000abc{n}" for n in range(2)]
    for one in ids:
        migrated.run(
            "INSERT INTO kernel.jobs (id, queue, task, rank, max_attempts, timeout_s) VALUES (%s, 'q', 't', 0, 1, 1)",
            UUID(one),
        )
    line = refused(on_migrated.app("jobs", "cancel", "0190b3a0"), 65)
    assert all(one in line for one in ids)
    assert migrated.all("SELECT count(*) FROM kernel.jobs WHERE id = ANY(%s::uuid[])", ids) == [(2,)]
    _, first, second, *_ = on_terminal(on_migrated, "jobs", "list", "--queue", "q", "--task", "t")
    assert {first.split()[0], second.split()[0]} == {"0000abc0", "0000abc1"}
    assert refused(on_migrated.app("jobs", "show", "abcdef12"), 67).endswith(
        "begins with abcdef12, and none of the newest 100,000 ends with it"
    )
    for wrong in ("abc", "a---", "a" * 33):
        said = misused(on_migrated.app("jobs", "show", "--", wrong))
        assert "at least 4 of its first or last characters" in said


def test_ids_whose_ends_are_alike_are_shown_as_far_as_they_differ(on_migrated: Project, migrated: TestDatabase) -> None:
    for one in ("0190b3a0-0000-7000-8001-000000000001", "0190b3a0-0000-7000-8002-000000000001"):
        migrated.run(
            "INSERT INTO kernel.dead_letters (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at)"
            " VALUES (%s, 'alike', 't', 'r', 1, 1, 1, now())",
            one,
        )
    _, *lines = on_terminal(on_migrated, "dead-letters", "list", "--queue", "alike")
    assert [line.split()[0] for line in lines] == ["2-000000000001", "1-000000000001"]
    for line in lines:
        assert on_migrated.app("dead-letters", "show", line.split()[0]).returncode == 0


# What a list leaves out, and what it says when it is empty


def test_done_jobs_of_schedules_are_listed_when_asked_for(on_migrated: Project, migrated: TestDatabase) -> None:
    mine = job(migrated, "noise")
    finished = """
        INSERT INTO kernel.finished_jobs (id, queue, task, outcome, attempt, schedule, created_at)
        VALUES (kernel.uuid7(), 'noise', 'platform.heartbeat', %s, 1, %s, now()) RETURNING id
    """
    [(done,)] = migrated.all(finished, "done", "platform.heartbeat")
    [(cancelled,)] = migrated.all(finished, "cancelled", "platform.heartbeat")
    [(enqueued,)] = migrated.all(finished, "done", None)

    def listed(*options: str) -> set[str]:
        found = printed_json(on_migrated.app("jobs", "list", "--queue", "noise", "--json", *options))
        return {item["id"] for item in found["items"]}

    assert listed() == {mine, str(cancelled), str(enqueued)}
    assert listed("--all") == {mine, str(cancelled), str(enqueued), str(done)}
    assert listed("--task", "platform.heartbeat") == {str(cancelled), str(enqueued), str(done)}
    *_, note = on_terminal(on_migrated, "jobs", "list", "--queue", "noise")
    assert "--all" in note


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("jobs list --queue defualt", "there is no queue defualt; did you mean default?"),
        (
            "jobs list --task platform.hartbeat",
            "there is no task or subscriber platform.hartbeat; did you mean platform",
        ),
        ("dead-letters purge --task platform.hartbeat --yes", "did you mean platform.heartbeat?"),
        ("dead-letters purge --queue defualt --dry-run", "did you mean default?"),
        ("queues pause defualt", "did you mean default?"),
        ("schedules trigger platform.hartbeat", "did you mean platform.heartbeat?"),
        ("events replay --subscriber greetre --from 2026-11-22 --yes", "did you mean greeter?"),
    ],
)
def test_a_mistyped_name_is_no_such_thing_and_the_nearest_is_named(
    on_migrated: Project, migrated: TestDatabase, line: str, says: str
) -> None:
    migrated.run(
        "INSERT INTO kernel.subscriptions (subscriber, event_type) VALUES ('greeter', 'test.moved')"
        " ON CONFLICT DO NOTHING"
    )
    migrated.run(
        "INSERT INTO kernel.schedules (name, task, spec, misfire, next_fire_at)"
        " VALUES ('platform.heartbeat', 'platform.heartbeat', 's', 'one', now()) ON CONFLICT DO NOTHING"
    )
    assert says in refused(on_migrated.app(*line.split()), 67)


def test_an_empty_list_says_so_and_what_to_do_next(on_migrated: Project) -> None:
    done = on_migrated.app("events", "list", "--type", "nothing.happened")
    assert (done.returncode, done.stderr) == (0, "no events match these options\n")
    known = on_migrated.app("jobs", "list", "--task", "platform.notify_errors", "--json")
    assert (printed_json(known)["items"], known.stderr) == ([], "")
    empty = on_migrated.app("errors", "list")
    assert re.fullmatch(r"no errors; .+\n", empty.stderr)


# Many rows at once


def test_a_dry_run_counts_and_changes_nothing(on_migrated: Project, migrated: TestDatabase) -> None:
    dead_letters(migrated, "dry", 1500)
    count = "SELECT count(*) FROM kernel.dead_letters WHERE queue = 'dry'"
    for verb in ("retry", "purge"):
        done = on_migrated.app("dead-letters", verb, "--queue", "dry", "--dry-run")
        assert (done.returncode, done.stdout) == (0, "1500 dead letters would be changed; nothing was done\n")
    counted = printed_json(on_migrated.app("dead-letters", "purge", "--queue", "dry", "--dry-run", "--json"))
    assert counted == {"dry_run": True, "count": 1500}
    assert migrated.all(count) == [(1500,)]
    one = migrated.all("SELECT id FROM kernel.dead_letters WHERE queue = 'dry' LIMIT 1")[0][0]
    assert "--dry-run needs options that select rows" in misused(
        on_migrated.app("dead-letters", "purge", str(one), "--dry-run")
    )


def test_purging_one_asks_with_its_whole_id(on_migrated: Project, migrated: TestDatabase) -> None:
    [made] = dead_letters(migrated, "asked")
    with terminal(on_migrated, "dead-letters", "purge", made[-8:]) as asked:
        asked.expect(f"Delete the dead letter {made}? It can be restored for a day. [y/N]: ")
        asked.type("n\n")
        assert asked.wait() == 1
    assert "nothing was changed" in asked.seen
    assert migrated.all("SELECT count(*) FROM kernel.dead_letters WHERE id = %s", made) == [(1,)]


# Help


@pytest.mark.parametrize("group", ["jobs", "dead-letters", "queues", "migrate"])
def test_the_help_of_a_group_shows_whole_sentences(cli: Project, group: str) -> None:
    listed = cli.app(group, "--help").stdout.partition("Commands:\n")[2]
    assert "..." not in listed
    summaries = re.split(r"\n  (?=\S)", listed.rstrip())
    assert all(summary.endswith(".") for summary in summaries), listed
