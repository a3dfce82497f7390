"""The hint under an error: it names a command that exists, and says more than the message."""

import ast
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli import _translated  # pyright: ignore[reportPrivateUsage]
from app.kernel.config import Misconfigured, Problem
from app.kernel.db.refusals import away, read_only
from app.kernel.errors import Invalid, NotFound, RateLimited, Refusal, Unavailable
from tests.conftest import TestDatabase
from tests.support.debian import free_port
from tests.support.project import ROOT, Project
from tests.test_cli import parse

UNKNOWN = "01900000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def migrated(template: TestDatabase) -> Iterator[TestDatabase]:
    created = template.copy()
    yield created
    created.drop()


def text(node: ast.AST) -> Iterator[str]:
    """Yield the texts that an expression may have; what is filled in at run time is `something`."""
    match node:
        case ast.Constant(value=str(value)):
            yield value
        case ast.JoinedStr():
            parts = [part.value if isinstance(part, ast.Constant) else ast.unparse(part) for part in node.values]
            yield "".join({"{NAME}": "app"}.get(str(part), str(part)) for part in parts)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from text(child)


def hints_in(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of `hint = ...`, `hint=...`, constants that these use, and the commands of IdOf and NameOf."""
    names = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        match node:
            case (
                ast.keyword(arg="hint", value=value)
                | ast.AnnAssign(target=ast.Name(id="hint"), value=ast.expr() as value)
            ):
                found = [value]
            case ast.Assign(targets=targets, value=value) if "hint" in names_in(*targets):
                found = [value]
            case ast.Call(func=ast.Name(id="IdOf" | "NameOf"), args=[_, _, listed]):
                yield from (f"app {words}" for words in text(listed))
                continue
            case _:
                continue
        for value in [*found, *(names[name] for name in names_in(*found) if name in names)]:
            yield from text(value)


def names_in(*nodes: ast.AST) -> set[str]:
    return {each.id for node in nodes for each in ast.walk(node) if isinstance(each, ast.Name)}


def commands() -> list[str]:
    found = {hint for path in (ROOT / "app").rglob("*.py") for hint in hints_in(ast.parse(path.read_text()))}
    lines = {line for hint in found for line in hint.splitlines()}
    return sorted(line.removeprefix("app ") for line in lines if line.startswith("app "))


@pytest.mark.parametrize("line", [*commands(), "support-bundle"])
def test_each_hint_is_a_command_that_exists_with_its_options(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words == ["--help"]:
        return
    assert parse(words).split() == words[: len(parse(words).split())]


def test_the_hints_of_the_sources_are_found() -> None:
    known = {
        "migrate up",
        "queues list",
        "jobs list",
        "doctor --only postgresql",
        "doctor --only disk --only permissions",
    }
    assert known <= set(commands())
    assert len(commands()) > 25


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
        ("auth unlock --username gone", {}, 67, "auth actors list"),
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


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("systemd install --dir {folder}/units", "mkdir -p {folder}/units"),
        ("auth create-superuser --username root --password-file {folder}/none", "ls -l {folder}/none"),
        ("systemd print run-auth-htp", "app --help"),
        ("config validate run-auth-htp", "app --help"),
    ],
)
def test_what_is_not_there_is_followed_by_how_to_find_or_make_it(
    cli: Project, migrated: TestDatabase, tmp_path: Path, line: str, hint: str
) -> None:
    done = cli.app(*line.format(folder=tmp_path).split(), env=migrated.env)
    assert done.returncode in (65, 67)
    message, *hints = done.stderr[done.stderr.index("app: ") :].splitlines()
    assert hints == [f"hint: {hint.format(folder=tmp_path)}"]
    assert hint.format(folder=tmp_path) not in message


def test_an_error_has_its_own_hint_or_that_of_its_class_and_some_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(error: Exception) -> list[str]:
        def fail() -> None:
            raise error

        _translated(fail)
        return capsys.readouterr().err.splitlines()[1:]

    assert printed(Unavailable("gone", hint="start it\nstart it again")) == ["hint: start it", "hint: start it again"]
    assert printed(away()) == ["hint: app doctor --only postgresql"]
    assert printed(read_only()) == ["hint: app doctor --only replication --only postgresql-settings"]
    for without in (RateLimited("the database is safe"), NotFound("there is no such thing"), Invalid("x"), Refusal()):
        assert printed(without) == []
    assert printed(Misconfigured("wrong")) == ["hint: app doctor --only settings --only secrets"]
    assert printed(Misconfigured("wrong", [Problem("a.b", "command line", "wrong")])) == []
    assert printed(Misconfigured("wrong", [Problem("a.b", "A_B", "wrong", "unseal it")])) == ["hint: unseal it"]
    full = OSError(28, "No space left on device", "/var/log")
    assert printed(full) == ["hint: app doctor --only disk --only permissions"]
    assert printed(ValueError("a bug"))[-1] == "hint: app support-bundle"


def test_no_message_has_the_command_that_its_hint_has() -> None:
    for path in (ROOT / "app").rglob("*.py"):
        assert "run: {NAME}" not in path.read_text(), path
