"""The hint under an error: it names a command that exists, and each row of the table is of an error that there is."""

import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from app.cli import _status  # pyright: ignore[reportPrivateUsage]
from app.hints import HINTS, REPORT, hints
from app.kernel.config import Misconfigured
from app.kernel.errors import Conflict, NotFound, RateLimited, Refusal, Unavailable
from app.modules import modules
from tests.commands.database import migrated_database
from tests.conftest import PostgresServer, TestDatabase
from tests.support.debian import free_port
from tests.support.project import ROOT, Project
from tests.test_cli import parse

UNKNOWN = "01900000-0000-7000-8000-000000000000"
SOURCES = [path.read_text() for path in (ROOT / "app").rglob("*.py") if path.name != "hints.py"]


@pytest.fixture(scope="module")
def migrated(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestDatabase]:
    with migrated_database(postgres, tmp_path_factory.mktemp("migrated")) as created:
        yield created


def kinds(of: type[BaseException]) -> Iterator[type[BaseException]]:
    yield of
    for kind in of.__subclasses__():
        yield from kinds(kind)


@pytest.mark.parametrize("line", sorted({command for *_, command in HINTS if command} | {REPORT.partition(" ")[2]}))
def test_each_hint_is_a_command_that_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)
    assert parse(words).split() == words[: len(parse(words).split())]


def test_each_row_is_of_a_class_or_a_code_and_of_a_message_that_exist() -> None:
    import_module("app.kernel.db.migrations.steps")
    for module in modules():
        list(module.feature_classes())
    found = [*kinds(Refusal), *kinds(Misconfigured), OSError]
    known = {kind.__name__ for kind in found} | {getattr(kind, "code", "") for kind in found}
    assert {name for name, *_ in HINTS} <= known
    made_of_parts = (
        "there is no queue ",
        "no job has an id ",
        "no dead letter has an id ",
        "no group of errors has an id ",
        "(command line)",
    )
    for _, words, _ in HINTS:
        assert words in made_of_parts or any(words.strip() in source for source in SOURCES), words


def test_no_row_hides_a_later_one() -> None:
    for at, (name, words, _) in enumerate(HINTS):
        hidden = [row for row in HINTS[at + 1 :] if row[0] == name and words in row[1]]
        assert hidden == [], (name, words)


@pytest.mark.parametrize(
    ("line", "env", "status", "hint"),
    [
        ("config show", {"POSTGRES_PORT": "many"}, 78, "doctor --only settings --only secrets"),
        ("config show", {"APP_ENV": "prod"}, 78, "export APP_ENV=production"),
        ("config explain postgres.hots", {}, 67, "config show"),
        ("doctor --only clocks", {}, 67, "doctor --list"),
        ("migrate status", {"POSTGRES_PORT": "CLOSED", "POSTGRES_HOST": "127.0.0.1"}, 69, "doctor --only postgresql"),
        ("run-cron-manager --port 0", {"LOGGER_OUTPUT": "/nowhere/log"}, 78, "config explain logger.output"),
        ("health --port 1", {}, 69, "doctor --only ports --only processes"),
        ("queues pause gone", {}, 67, "queues list"),
        ("jobs list --queue gone", {}, 67, "queues list"),
        (f"jobs show {UNKNOWN}", {}, 67, "jobs list"),
        ("jobs show abcd1234", {}, 67, "jobs list"),
        ("dead-letters show abcd1234", {}, 67, "dead-letters list"),
        (f"dead-letters show {UNKNOWN}", {}, 67, "dead-letters list"),
        ("errors show abcd1234", {}, 67, "errors list"),
        (f"errors show {UNKNOWN}", {}, 67, "errors list"),
        ("schedules trigger gone", {}, 67, "schedules list"),
        ("auth unlock --username gone", {}, 67, "db shell -c 'SELECT username, type, is_active FROM auth.actors'"),
        ("migrate down --module gone --yes", {}, 67, "migrate status"),
        ("errors notify-test", {}, 78, "config explain sentinel.notify_urls"),
    ],
)
def test_an_error_ends_with_the_command_to_run_next(
    cli: Project, migrated: TestDatabase, line: str, env: dict[str, str], status: int, hint: str
) -> None:
    closed = {name: str(free_port()) if value == "CLOSED" else value for name, value in env.items()}
    more = {"POSTGRES_STARTUP_TIMEOUT": "100ms"} if closed else migrated.env
    done = cli.app(*line.split(), env={**more, **closed})
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1].removeprefix("hint: ").removeprefix("app ") == hint


def test_an_error_keeps_its_own_hints_and_some_have_none(tmp_path: Path) -> None:
    noted = Unavailable("the database is unavailable")
    noted.add_note("start it")
    assert hints(noted) == ["start it"]
    assert hints(Conflict("3 migrations are pending, the first is x; run: app migrate up")) == ["app migrate up"]
    assert hints(RateLimited("the database is safe")) == []
    assert hints(NotFound("there is no such thing")) == []
    assert hints(OSError(28, "No space left on device")) == ["app doctor --only disk --only permissions"]
    assert _status(noted) == 69
