"""`app auth create-superuser`."""

import subprocess
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from tests.commands.outcome import misused, printed_json, refused
from tests.commands.terminal import END, INTERRUPT, terminal
from tests.conftest import TestDatabase
from tests.support.project import Project

PASSWORD = "correct horse battery staple"
OTHER = "another horse, another staple"
ROW = "SELECT * FROM auth.actors WHERE username_key = %s"
COUNT = "SELECT count(*) FROM auth.actors"


def create(
    project: Project, username: str, *options: str, password: str | None = None
) -> "subprocess.CompletedProcess[str]":
    return project.app("auth", "create-superuser", "--username", username, *options, stdin=password)


def password_fits(database: TestDatabase, username: str, password: str) -> bool:
    [(stored,)] = database.all("SELECT password_hash FROM auth.actors WHERE username_key = %s", username)
    return PasswordHasher().verify(stored, password)


def test_a_password_typed_twice_makes_a_superuser_and_is_never_shown(
    on_migrated: Project, migrated: TestDatabase
) -> None:
    with terminal(on_migrated, "auth", "create-superuser") as asked:
        asked.expect("Username: ")
        asked.type("typed\n")
        asked.expect("A password has 8 to 256 characters, is not among the most used")
        asked.expect("Password: ")
        asked.type(f"{PASSWORD}\n")
        asked.expect("Again: ")
        asked.type(f"{PASSWORD}\n")
        assert asked.wait() == 0, asked.seen
    assert "created the superuser typed" in asked.seen
    assert PASSWORD not in asked.seen
    assert password_fits(migrated, "typed", PASSWORD)


def test_two_different_passwords_make_nobody(on_migrated: Project, migrated: TestDatabase) -> None:
    with terminal(on_migrated, "auth", "create-superuser", "--username", "differing") as asked:
        asked.expect("Password: ")
        asked.type(f"{PASSWORD}\n")
        asked.expect("Again: ")
        asked.type(f"{OTHER}\n")
        assert asked.wait() == 65
    assert "app: the passwords differ; nothing was changed" in asked.seen
    assert PASSWORD not in asked.seen
    assert OTHER not in asked.seen
    assert migrated.all(ROW, "differing") == []


@pytest.mark.parametrize("prompts", [1, 2])
def test_an_interrupt_at_a_prompt_makes_nobody(on_migrated: Project, migrated: TestDatabase, prompts: int) -> None:
    with terminal(on_migrated, "auth", "create-superuser", "--username", "interrupted") as asked:
        asked.expect("Password: ")
        if prompts == 2:
            asked.type(f"{PASSWORD}\n")
            asked.expect("Again: ")
        asked.type(INTERRUPT)
        assert asked.wait() == 130
    assert "Traceback" not in asked.seen
    assert migrated.all(ROW, "interrupted") == []


@pytest.mark.parametrize(("beginning", "ending"), [("", ""), ("", "\n"), ("", "\r\n"), ("\ufeff", "\n\n")])
def test_a_password_from_stdin_is_its_line_without_the_end(
    on_migrated: Project, migrated: TestDatabase, beginning: str, ending: str
) -> None:
    username = f"stdin{len(ending)}{len(beginning)}"
    done = create(on_migrated, username, "--password-stdin", password=beginning + PASSWORD + ending)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"created the superuser {username} (")
    assert password_fits(migrated, username, PASSWORD)


def test_a_password_is_read_from_a_file_and_the_result_is_json(
    on_migrated: Project, migrated: TestDatabase, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    made = printed_json(create(on_migrated, "filed", "--password-file", str(file), "--json"))
    assert made.keys() == {"id", "username", "created"}
    assert (made["username"], made["created"]) == ("filed", True)
    assert password_fits(migrated, "filed", PASSWORD)


def test_repeating_it_says_so_and_changes_nothing(on_migrated: Project, migrated: TestDatabase) -> None:
    assert create(on_migrated, "repeated", "--password-stdin", password=PASSWORD).returncode == 0
    before = migrated.all(ROW, "repeated")
    done = create(on_migrated, "Repeated", "--password-stdin", password=OTHER)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"the superuser repeated exists already ({before[0][0]}); nothing was changed\n"
    made = printed_json(create(on_migrated, "repeated", "--password-stdin", "--json", password=OTHER))
    assert made == {"id": str(before[0][0]), "username": "repeated", "created": False}
    with terminal(on_migrated, "auth", "create-superuser", "--username", "repeated") as told:
        assert told.wait() == 0
    assert "exists already" in told.seen
    assert "Password" not in told.seen
    assert migrated.all(ROW, "repeated") == before


def test_four_at_once_make_one_superuser(project: Project, database: TestDatabase) -> None:
    command = [project.python, "-m", "app", "auth", "create-superuser", "--username", "root", "--password-stdin"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [
        subprocess.Popen(command, cwd=project.root, env=project.environment(), text=True, **pipes) for _ in range(4)
    ]
    try:
        done = [(*process.communicate(PASSWORD, timeout=90), process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [status for _, _, status in done] == [0] * 4, done
    assert sorted(out.split()[0] for out, _, _ in done) == ["created", "the", "the", "the"]
    assert database.all(COUNT) == [(1,)]
    assert password_fits(database, "root", PASSWORD)


def test_the_name_of_an_ordinary_actor_is_refused_and_it_stays_one(
    on_migrated: Project, migrated: TestDatabase
) -> None:
    migrated.run(
        "INSERT INTO auth.actors (id, type, username, username_key)"
        " VALUES (gen_random_uuid(), 'user', 'ordinary', 'ordinary')"
    )
    before = migrated.all(ROW, "ordinary")
    line = refused(create(on_migrated, "ordinary", "--password-stdin", password=PASSWORD), 73)
    assert "ordinary belongs to an actor who is no superuser" in line
    with terminal(on_migrated, "auth", "create-superuser", "--username", "ordinary") as told:
        assert told.wait() == 73
    assert line in told.seen
    assert "Password" not in told.seen
    assert migrated.all(ROW, "ordinary") == before


@pytest.mark.parametrize(
    ("username", "password", "about"),
    [
        ("x", PASSWORD, "3 to 64"),
        ("a b", PASSWORD, "letters"),
        ("weak", "short", "8 to 256"),
        ("weak", "a weak one", "username"),
    ],
    ids=["short name", "bad name", "short password", "telling password"],
)
def test_a_bad_name_or_password_makes_nobody(
    on_migrated: Project, migrated: TestDatabase, username: str, password: str, about: str
) -> None:
    line = refused(create(on_migrated, username, "--password-stdin", password=password), 65)
    assert about in line
    assert password not in line
    assert migrated.all(ROW, username) == []


@pytest.mark.parametrize(
    ("content", "about"),
    [
        (b"one line\nand another", "must hold the password in one line"),
        (b"\n", "must hold the password in one line"),
        (b"", "must hold the password in one line"),
        (b"caf\xe9 caf\xe9 caf\xe9", "is not UTF-8 text"),
        (None, "No such file or directory"),
    ],
    ids=["two lines", "empty line", "empty", "not UTF-8", "missing"],
)
def test_a_password_file_that_holds_no_password_is_refused(
    cli: Project, tmp_path: Path, content: bytes | None, about: str
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    line = refused(create(cli, "root", "--password-file", str(file)), 65)
    assert str(file) in line
    assert about in line


@pytest.mark.parametrize(
    ("options", "about"),
    [
        ([], "no terminal to ask on"),
        (["--no-input"], "no terminal to ask on"),
        (["--password-stdin", "--password-file", "x"], "give one of"),
        (["--password", PASSWORD], "No such option"),
        (["--password=" + PASSWORD], "No such option"),
    ],
    ids=["no terminal", "no input", "two sources", "on the command line", "on the command line, joined"],
)
def test_a_password_has_one_source_and_never_the_command_line(cli: Project, options: list[str], about: str) -> None:
    line = misused(create(cli, "root", *options))
    assert about in line
    assert PASSWORD not in line


def test_no_input_on_a_terminal_does_not_ask(cli: Project) -> None:
    with terminal(cli, "auth", "create-superuser", "--username", "root", "--no-input") as told:
        assert told.wait() == 2
    assert "Password:" not in told.seen
    with terminal(cli, "auth", "create-superuser", "--no-input") as told:
        assert told.wait() == 2
    assert "give --username" in told.seen
    assert "Username:" not in told.seen


@pytest.mark.parametrize(("typed", "said"), [("\n", "no username was given"), (END, "no username was given")])
def test_no_username_is_refused(cli: Project, typed: str, said: str) -> None:
    with terminal(cli, "auth", "create-superuser") as asked:
        asked.expect("Username: ")
        asked.type(typed)
        assert asked.wait() == 1
    assert said in asked.seen
