"""Old and new release over one schema, as docs/upgrading.md says; and the lint that keeps migrations so."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import TestDatabase, log_in
from tests.support.project import ROOT, Project, eventually

SQL = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "upgrading.md").read_text(), re.DOTALL)
FILES = {found[1]: text for text in SQL if (found := re.match(r"-- (\d{14}_\w+)\.sql\n", text))}
[MOVE] = [text for text in SQL if text.startswith("INSERT")]
EXPAND, INDEX, CONTRACT = sorted(FILES)
ROLLBACKS = {
    EXPAND: "DROP TABLE auth.emails;",
    INDEX: "-- transactional: false\nDROP INDEX CONCURRENTLY IF EXISTS auth.emails_address;",
    CONTRACT: "ALTER TABLE auth.actors ADD COLUMN email text;",
}
BASE = "20261201000000_auth_add_actors_email"


def lint(folder: Path, *migrations: str) -> subprocess.CompletedProcess[str]:
    """Run the linter of `just check` on the migrations of a folder."""
    [command] = re.findall(r'"(squawk [^"]+)"', (ROOT / "justfile").read_text())
    (folder / "migrations").mkdir(exist_ok=True)
    for number, sql in enumerate(migrations):
        (folder / "migrations" / f"2027010100000{number}_auth_planted.sql").write_text(sql)
    (folder / ".squawk.toml").write_text((ROOT / ".squawk.toml").read_text())
    programs = Path(sys.executable).parent
    return subprocess.run(f"{programs}/{command}", shell=True, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("sql", "rule"),
    [
        ("ALTER TABLE auth.actors ADD COLUMN n uuid NOT NULL DEFAULT gen_random_uuid();", "adding-field-with-default"),
        ("ALTER TABLE auth.actors ADD COLUMN n text NOT NULL;", "adding-required-field"),
        ("ALTER TABLE auth.actors ALTER COLUMN type SET NOT NULL;", "adding-not-nullable-field"),
        ("ALTER TABLE auth.actors ALTER COLUMN type TYPE varchar(9);", "changing-column-type"),
        ("ALTER TABLE auth.actors ADD CONSTRAINT n CHECK (type <> 'n');", "constraint-missing-not-valid"),
        ("ALTER TABLE auth.actors ADD CONSTRAINT n UNIQUE (type);", "disallowed-unique-constraint"),
        ("CREATE INDEX n ON auth.actors (type);", "require-concurrent-index-creation"),
        ("DROP INDEX auth.actors_type;", "require-concurrent-index-deletion"),
        ("CREATE TABLE n (n text); CREATE INDEX CONCURRENTLY IF NOT EXISTS n ON n (n);", "ban-concurrent-index"),
        ("ALTER TABLE auth.actors RENAME COLUMN type TO kind;", "renaming-column"),
        ("ALTER TABLE auth.actors RENAME TO people;", "renaming-table"),
        ("ALTER TABLE auth.actors DROP COLUMN type;", "ban-drop-column"),
        ("DROP TABLE auth.actors;", "ban-drop-table"),
    ],
)
def test_the_lint_refuses_a_migration_that_blocks_or_breaks_others(tmp_path: Path, sql: str, rule: str) -> None:
    refused = lint(tmp_path, sql)
    assert refused.returncode == 1
    assert rule in refused.stdout


def test_the_lint_accepts_the_example_and_what_the_rules_of_locks_advise(tmp_path: Path) -> None:
    advised = [
        "ALTER TABLE auth.actors ADD COLUMN n text;",
        "ALTER TABLE auth.actors ADD COLUMN m boolean NOT NULL DEFAULT false;",
        "ALTER TABLE auth.actors ADD CONSTRAINT n CHECK (n IS NOT NULL) NOT VALID;",
        "ALTER TABLE auth.actors VALIDATE CONSTRAINT n;",
        "CREATE TABLE n (n text); CREATE INDEX n ON n (n);",
    ]
    accepted = lint(tmp_path, *FILES.values(), *advised)
    assert accepted.returncode == 0, accepted.stdout
    assert f"in {len(FILES) + len(advised)} files" in accepted.stdout
    ours = subprocess.run(
        [Path(sys.executable).parent / "squawk", *ROOT.glob("migrations/*.sql")], cwd=ROOT, check=False
    )
    assert ours.returncode == 0


def test_every_rule_that_is_left_out_has_its_reason() -> None:
    text = (ROOT / ".squawk.toml").read_text()
    for rule in tomllib.loads(text)["excluded_rules"]:
        assert re.search(rf'"{rule}",? +# \w+', text), rule


def add(project: Project, name: str, sql: str, rollback: str) -> None:
    path = project.root / "migrations" / f"{name}.sql"
    path.write_text(sql)
    path.with_suffix(".rollback.sql").write_text(rollback)


def test_an_older_release_runs_on_the_schema_of_a_newer_one_until_and_after_it_is_rolled_back(
    project: Project, database: TestDatabase, tmp_path: Path
) -> None:
    old, new = project.copy(tmp_path / "old"), project.copy(tmp_path / "new")
    for release in (old, new):
        add(
            release,
            BASE,
            "ALTER TABLE auth.actors ADD COLUMN email text;",
            "ALTER TABLE auth.actors DROP COLUMN email;",
        )
    running = old.start("run-all-in-one")
    client = log_in(old, running)
    database.run("UPDATE auth.actors SET email = 'root@example.com'")

    def works(release: str) -> None:
        assert client.get("/auth/v1/me").status_code == 200
        assert client.post("/auth/v1/roles", json={"name": release}).status_code == 201
        assert client.post("/platform/v1/schedules/platform.heartbeat/trigger").status_code == 200
        eventually(lambda: database.all("SELECT count(*) FROM kernel.jobs WHERE state <> 'scheduled'") == [(0,)])

    def warnings() -> list[str]:
        process = old.start("run-auth-http")
        assert client.get(process.ready() + "/auth/v1/me").status_code == 200
        assert process.stop() == 0
        return [line["message"] for line in process.logs() if line["level"] == "warning"]

    assert warnings() == []
    works("before")
    for name in (EXPAND, INDEX):
        add(new, name, FILES[name], ROLLBACKS[name])
    newer = new.start("run-auth-http")  # migrates beside it
    assert client.get(newer.ready() + "/auth/v1/me").status_code == 200
    works("expanded")
    database.run(MOVE)
    assert database.all("SELECT address FROM auth.emails") == [("root@example.com",)]
    assert newer.stop() == 0
    [warning] = warnings()
    assert warning.startswith(
        f"2 applied migrations have no file here, the last is {INDEX}: a newer release has migrated"
    )
    add(new, CONTRACT, FILES[CONTRACT], ROLLBACKS[CONTRACT])
    assert new.app("migrate", "up").returncode == 0
    works("contracted")  # the code of today never knew the column
    assert old.app("migrate", "down", "--yes").returncode == 65
    for _ in FILES:
        assert new.app("migrate", "down", "--yes").returncode == 0
    works("rolled back")
    assert warnings() == []
    assert running.stop() == 0
    assert [line for line in running.logs() if line["level"] in ("error", "critical")] == []
