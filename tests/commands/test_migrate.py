"""`app migrate`, and what a process makes of migrations that it may not or cannot apply."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.kernel.db.migrations.files import read
from app.modules import MODULES
from app.processes import PROCESSES
from tests.commands.outcome import one_line
from tests.conftest import TestDatabase
from tests.support.project import Project

LATER = "20270101000000_auth_later"


@pytest.fixture
def copy(project: Project, tmp_path: Path) -> Project:
    """A copy of the project whose migrations are applied."""
    return project.copy(tmp_path / "copy")


def ids(project: Project) -> list[str]:
    return [migration.id for migration in read(project.root / "migrations")]


def add(project: Project, sql: str, rollback: str | None = "", name: str = LATER) -> Path:
    path = project.root / "migrations" / f"{name}.sql"
    path.write_text(sql)
    if rollback is not None:
        path.with_suffix(".rollback.sql").write_text(rollback)
    return path


def printed(project: Project, *command: str) -> Any:
    done = project.app("migrate", *command, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_up_status_plan_and_down_tell_programs_what_happened(unmigrated: Project, tmp_path: Path) -> None:
    copied = unmigrated.copy(tmp_path / "copy")
    names = ids(copied)
    add(copied, "CREATE TABLE later (n int);\nSELECT 1;\n", "DROP TABLE later;\n")
    assert printed(copied, "up") == {"applied": [*names, LATER]}
    assert printed(copied, "up") == {"applied": []}
    assert printed(copied, "down", "--yes") == {"rolled_back": LATER}
    plan = printed(copied, "plan")
    assert plan == {"items": [{"id": LATER, "sql": "CREATE TABLE later (n int);\nSELECT 1;\n"}]}
    status = printed(copied, "status")
    assert list(status) == ["items"]
    assert [(item["id"], item["state"]) for item in status["items"]] == [
        *((name, "applied") for name in names),
        (LATER, "pending"),
    ]
    assert {tuple(item) for item in status["items"]} == {("id", "state", "applied_at")}
    assert status["items"][-1]["applied_at"] is None
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT.*Z", item["applied_at"]) for item in status["items"][:-1])


def test_up_status_plan_and_down_tell_people_what_happened(copy: Project) -> None:
    add(copy, "CREATE TABLE later (n int);\nSELECT 'a row';\n", "DROP TABLE later;\n")
    plan = copy.app("migrate", "plan")
    assert plan.stdout == f"-- {LATER}.sql\nCREATE TABLE later (n int);\nSELECT 'a row';\n\n"
    up = copy.app("migrate", "up")
    assert (up.returncode, up.stdout) == (0, "")  # rows that a migration selects are no data of the command
    assert re.search(rf"^applied {LATER} in \d+\.\d\d s$", up.stderr, re.MULTILINE)
    again = copy.app("migrate", "up")
    assert (again.returncode, again.stdout, again.stderr) == (0, "nothing to apply\n", "")
    status = copy.app("migrate", "status").stdout.splitlines()
    assert status[0].split() == ["migration", "state", "applied", "at"]
    assert re.fullmatch(rf"{LATER} +applied +\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\dZ", status[-1])
    down = copy.app("migrate", "down", "--yes")
    assert (down.returncode, down.stdout, down.stderr) == (0, "", f"rolled back {LATER}\n")


@pytest.mark.parametrize("options", [(), ("--no-input",)])
def test_down_without_a_terminal_wants_yes_and_changes_nothing(copy: Project, options: tuple[str, ...]) -> None:
    done = copy.app("migrate", "down", *options)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert {item["state"] for item in printed(copy, "status")["items"]} == {"applied"}


def test_down_of_a_module_shows_what_it_would_run_then_rolls_back_that_module_only(
    copy: Project, database: TestDatabase
) -> None:
    add(copy, "CREATE SCHEMA sample;\n", "DROP SCHEMA sample;\n", name="20270101000000_sample_init")
    add(copy, "CREATE TABLE sample.sample (n int);\n", "DROP TABLE sample.sample;\n", name="20270102000000_sample_more")
    add(copy, "CREATE TABLE later (n int);\n", "DROP TABLE later;\n", name="20270103000000_auth_later")
    assert copy.app("migrate", "up").returncode == 0
    shown = copy.app("migrate", "down", "--module", "sample", "--dry-run")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == (
        "-- 20270102000000_sample_more.rollback.sql\nDROP TABLE sample.sample;\n\n"
        "-- 20270101000000_sample_init.rollback.sql\nDROP SCHEMA sample;\n\n"
    )
    assert [item["id"] for item in printed(copy, "down", "--dry-run")["items"]] == [LATER.replace("0101", "0103")]
    assert copy.app("migrate", "down", "--module", "sample").returncode == 2
    assert {item["state"] for item in printed(copy, "status")["items"]} == {"applied"}
    done = printed(copy, "down", "--module", "sample", "--yes")
    assert done == {"rolled_back": ["20270102000000_sample_more", "20270101000000_sample_init"]}
    pending = [item["id"] for item in printed(copy, "status")["items"] if item["state"] == "pending"]
    assert pending == ["20270101000000_sample_init", "20270102000000_sample_more"]
    assert database.all("SELECT to_regnamespace('sample') IS NULL, to_regclass('later') IS NULL") == [(True, False)]
    again = copy.app("migrate", "down", "--module", "sample", "--yes")
    assert (again.returncode, again.stdout) == (0, "nothing to roll back\n")
    unknown = copy.app("migrate", "down", "--module", "sampl", "--yes")
    assert (unknown.returncode, unknown.stdout) == (67, "")
    said = "app: there are no migrations of 'sampl'; modules with migrations: auth, kernel, (.*, )?sample"
    assert re.search(said, unknown.stderr)


BEFORE_THE_SQUASH = """
    CREATE TABLE _migrations (migration_id varchar(255), applied_at_utc timestamp);
    INSERT INTO _migrations VALUES ('20261122110000_kernel_init_processes_and_queue', now())
"""


@pytest.mark.parametrize(
    "command",
    [
        *(("migrate", name) for name in ("up", "status", "plan")),
        ("migrate", "down", "--yes"),
        ("jobs", "list"),
        *((name, "--port", "0") for name in PROCESSES),
    ],
    ids=" ".join,
)
def test_a_database_of_before_the_squash_is_refused_with_what_to_do(
    unmigrated: Project, empty_database: TestDatabase, command: tuple[str, ...]
) -> None:
    empty_database.run(BEFORE_THE_SQUASH)
    done = unmigrated.app(*command)
    assert (done.returncode, done.stdout) == (78, "")
    refusal, hint = done.stderr.splitlines()
    assert refusal.startswith("app: this database was made before the migrations were squashed")
    assert "name an empty database in POSTGRES_DB" in refusal
    assert hint == "hint: app migrate up"
    tables = "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'r'"
    assert empty_database.all(tables + " AND nspname !~ '^pg_|^information_schema$'") == [("_migrations",)]


def test_create_makes_a_file_and_its_rollback_in_ascending_order(cli: Project, tmp_path: Path) -> None:
    copied = cli.copy(tmp_path / "copy")
    before = ids(copied)
    made = [copied.app("migrate", "create", "auth", "Add user roles") for _ in range(2)]
    assert [done.returncode for done in made] == [0, 0], made
    paths = [line for done in made for line in done.stdout.splitlines()]
    assert all((copied.root / path).is_file() for path in paths)
    names = [Path(path).name.removesuffix(".sql") for path in paths]
    assert names[1::2] == [f"{name}.rollback" for name in names[::2]]
    assert ids(copied) == [*before, *names[::2]]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"\d{14}_auth_add_user_roles", name) for name in names[::2])


@pytest.mark.parametrize(
    ("module", "description", "named"),
    [
        ("nowhere", "add_x", ", ".join(("kernel", *MODULES))),
        ("auth", "!!", "letter"),
        ("auth", "long " * 100, "longer"),
    ],
)
def test_create_refuses_what_makes_no_name(
    cli: Project, tmp_path: Path, module: str, description: str, named: str
) -> None:
    copied = cli.copy(tmp_path / "copy")
    before = ids(copied)
    done = copied.app("migrate", "create", module, description)
    assert (done.returncode, done.stdout) == (65, "")
    assert named in done.stderr
    assert ids(copied) == before


def broken(project: Project) -> str:
    add(project, "CREATE TABLE later (n int); SELECT 1 / 0;")
    return f"{LATER}.sql: apply failed: division by zero"


def edited(project: Project) -> str:
    first = ids(project)[0]
    with (project.root / "migrations" / f"{first}.sql").open("a") as file:
        file.write("-- a remark\n")
    return f"{first}: edited after it was applied"


def without_rollback(project: Project) -> str:
    add(project, "SELECT 1", rollback=None)
    return f"{LATER}.rollback.sql is missing"


def badly_named(project: Project) -> str:
    add(project, "SELECT 1", name="2027_auth_later")
    return "2027_auth_later.sql: the name must be"


@pytest.mark.parametrize(
    ("spoil", "status"), [(broken, 1), (edited, 65), (without_rollback, 65), (badly_named, 65)], ids=lambda value: None
)
@pytest.mark.parametrize("command", [("migrate", "up"), ("run-event-consumer", "--port", "0")], ids=lambda c: c[0])
def test_a_migration_that_cannot_be_applied_stops_with_one_line_that_names_it(
    copy: Project, database: TestDatabase, command: tuple[str, ...], spoil: Callable[[Project], str], status: int
) -> None:
    reason = spoil(copy)
    done = copy.app(*command)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("app: ")
    assert reason in done.stderr
    assert one_line(done.stderr)
    assert database.all("SELECT to_regclass('later') IS NULL") == [(True,)]
    assert database.all("SELECT count(*) FROM _migrations WHERE migration_id = %s", LATER) == [(0,)]


def test_a_process_that_may_not_migrate_starts_only_when_nothing_is_pending(
    copy: Project, database: TestDatabase
) -> None:
    add(copy, "CREATE TABLE later (n int)")
    refused = copy.app("run-auth-http", "--no-migrate", "--port", "0")
    assert refused.returncode == 73
    assert "app migrate up" in refused.stderr
    assert LATER in refused.stderr
    assert database.all("SELECT to_regclass('later') IS NULL") == [(True,)]
    assert copy.app("migrate", "up").returncode == 0
    process = copy.start("run-auth-http", "--no-migrate")
    process.ready()
    assert process.stop() == 0


def test_a_command_says_what_is_pending_migrates_nothing_and_goes_on_when_it_can(
    copy: Project, database: TestDatabase
) -> None:
    add(copy, "CREATE TABLE later (n int)")
    done = copy.app("jobs", "list", "--json")
    assert (done.returncode, json.loads(done.stdout)["items"]) == (0, [])
    assert f"1 migration is pending, the first is {LATER}; run: app migrate up" in done.stderr
    assert database.all("SELECT to_regclass('later') IS NULL") == [(True,)]


@pytest.mark.parametrize("command", [("jobs", "list"), ("auth", "keys", "list")], ids=" ".join)
def test_a_command_that_needs_what_is_pending_says_so(
    unmigrated: Project, empty_database: TestDatabase, command: tuple[str, ...]
) -> None:
    done = unmigrated.app(*command)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.splitlines()[-2:] == [
        "app: the schema of the database is older than this command",
        "hint: app migrate up",
    ]
    assert empty_database.all("SELECT to_regclass('_migrations') IS NULL") == [(True,)]


def test_a_process_starts_on_the_schema_of_a_newer_release_which_status_calls_unknown(copy: Project) -> None:
    newest = add(copy, "CREATE TABLE later (n int)")
    assert copy.app("migrate", "up").returncode == 0
    newest.unlink()
    newest.with_suffix(".rollback.sql").unlink()
    process = copy.start("run-all-in-one")
    process.ready()
    warning = f"1 applied migration has no file here, the last is {newest.stem}: a newer release has migrated"
    assert [line["level"] for line in process.logs() if line["message"].startswith(warning)] == ["warning"]
    assert printed(copy, "status")["items"][-1]["state"] == "unknown"
    assert process.stop() == 0
    for command in ("status", "plan", "up"):
        assert copy.app("migrate", command).stderr.startswith(warning), command
    down = copy.app("migrate", "down", "--yes")
    assert (down.returncode, down.stdout) == (65, "")
    assert one_line(down.stderr) == f"app: {newest.stem} has no file here; roll back with the release that applied it"


def test_an_edited_migration_is_refused_also_on_the_schema_of_a_newer_release(copy: Project) -> None:
    edited = add(copy, "CREATE TABLE mine (n int)", name="20270101000000_auth_mine")
    newest = add(copy, "CREATE TABLE later (n int)")
    assert copy.app("migrate", "up").returncode == 0
    newest.unlink()
    newest.with_suffix(".rollback.sql").unlink()
    edited.write_text("CREATE TABLE mine (n bigint)")
    for command in (["run-auth-http", "--port", "0"], ["migrate", "up"], ["migrate", "plan"]):
        refused = copy.app(*command)
        assert (refused.returncode, refused.stdout) == (65, ""), command
        assert f"{edited.stem}: edited after it was applied" in refused.stderr


def test_a_migration_without_a_statement_is_not_applied(project: Project, tmp_path: Path) -> None:
    copied = project.copy(tmp_path / "copy")
    made = copied.app("migrate", "create", "auth", "later").stdout.splitlines()[0]
    for command in ("up", "plan"):
        refused = copied.app("migrate", command)
        assert refused.returncode == 65
        assert one_line(refused.stderr) == f"app: {Path(made).name} has no statement yet; write it, or remove it"
    assert copied.app("migrate", "status").returncode == 0
