"""A process contains only what it needs: what each command has loaded when it ends."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.modules import MODULES, modules
from app.processes import PROCESSES
from tests.conftest import TestDatabase
from tests.support.project import Project, Running

# runs the command as `python -m app` does, and leaves the names of what was loaded in a file
_LOADED = """
import atexit, json, runpy, sys
result = sys.argv.pop(1)
def write():
    with open(result, "w") as file:
        json.dump(sorted(sys.modules), file)
atexit.register(write)
runpy.run_module("app", run_name="__main__", alter_sys=True)
"""
HEAVY = {
    "typer",
    "psycopg",
    "starlette",
    "hypercorn",
    "yoyo",
    "dynaconf",
    "opentelemetry",
    "prometheus_client",
    "apscheduler",
    "argon2",
    "joserfc",
    "cryptography",
    "pydantic",
    "loguru",
    "rich",
    "uvloop",
    "httpx2",
    "requests",
    "jinja2",
}
WEB = {"starlette", "hypercorn"}
PASSWORD = "correct horse battery staple"

Run = Callable[..., set[str]]


def _command(project: Project, result: Path, *args: str) -> list[str]:
    return [project.python, "-c", _LOADED, str(result), *args]


@pytest.fixture(scope="module")
def migrated(template: TestDatabase) -> Iterator[TestDatabase]:
    """A database whose schema is current, for all tests of this file."""
    created = template.copy()
    yield created
    created.drop()


@pytest.fixture
def on_migrated(cli: Project, migrated: TestDatabase) -> Project:
    cli.env |= migrated.env
    return cli


def loaded_by(
    project: Project, *args: str, status: int = 0, stdin: str = "", env: dict[str, str] | None = None
) -> set[str]:
    """Run a command to its end; return every module that it loaded."""
    result = project.scratch / "loaded.json"
    done = subprocess.run(
        _command(project, result, *args),
        cwd=project.root,
        env=project.environment(env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return set(json.loads(result.read_text()))


def loaded_by_process(project: Project, name: str) -> set[str]:
    """Run a process until it is ready, stop it; return every module that it loaded."""
    result, output, errors = (project.scratch / f"{name}.{kind}" for kind in ("json", "out", "err"))
    with output.open("wb") as out, errors.open("wb") as err:
        popen = subprocess.Popen(
            _command(project, result, name, "--port", "0"),
            cwd=project.root,
            env=project.environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
    process = Running(popen, output, errors)
    project.running.append(process)
    process.ready()
    process.signal(signal.SIGTERM)
    assert process.wait() == 0, process.said()
    return set(json.loads(result.read_text()))


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["--version"]])
def test_help_and_version_load_no_infrastructure_and_only_manifests(cli: Project, args: list[str]) -> None:
    loaded = loaded_by(cli, *args)
    assert packages(loaded) & HEAVY == set()
    assert {name for name in loaded if name.startswith("app.")} <= {
        "app.cli",
        "app.signals",
        "app.streams",
        "app.composition",
        "app.processes",
        "app.services",
        "app.modules",
        *(f"app.modules.{module}" for module in MODULES),
        "app.kernel",
        "app.kernel.module",
        "app.kernel.services",
        "app.kernel.product",
    }


def test_completing_the_first_word_loads_only_the_command_line(cli: Project) -> None:
    loaded = loaded_by(cli, env={"_APP_COMPLETE": "complete_bash", "COMP_WORDS": "app mig", "COMP_CWORD": "1"})
    assert packages(loaded) & HEAVY == {"typer"}


COMMANDS: dict[str, tuple[list[str], int, str, set[str]]] = {
    "create-superuser": (
        ["auth", "create-superuser", "--username", "root", "--password-stdin"],
        0,
        PASSWORD,
        {"argon2", "psycopg"},
    ),
    "config show": (["config", "show"], 0, "", {"dynaconf", "pydantic"}),
    "migrate status": (["migrate", "status"], 0, "", {"psycopg"}),
    "migrate up": (["migrate", "up"], 0, "", {"psycopg"}),
    "health": (["health", "--port", "1"], 69, "", {"dynaconf"}),
    "doctor": (["doctor", "--only", "migrations", "--only", "queues"], 0, "", {"psycopg"}),
    "jobs list": (["jobs", "list"], 0, "", {"psycopg"}),
    "queues pause": (["queues", "pause", "default"], 0, "", {"psycopg"}),
    "events replay": (
        ["events", "replay", "--subscriber", "nobody", "--from", "2026-11-22", "--yes"],
        67,
        "",
        {"psycopg"},
    ),
}
NOT_LOADED: dict[str, set[str]] = {
    "create-superuser": WEB | {"apscheduler", "uvloop", "joserfc", "yoyo", "rich"},
    "config show": HEAVY - {"typer", "pydantic", "dynaconf", "rich"},
    "migrate status": WEB | {"apscheduler", "argon2", "joserfc", "uvloop", "yoyo"},
    "migrate up": WEB | {"apscheduler", "argon2", "joserfc", "uvloop", "yoyo", "rich"},
    "health": HEAVY - {"typer", "pydantic", "dynaconf"},
    "doctor": WEB | {"apscheduler", "argon2", "joserfc", "uvloop", "yoyo", "httpx2", "requests"},
    "jobs list": WEB | {"apscheduler", "argon2", "joserfc", "uvloop", "yoyo"},
    "queues pause": WEB | {"apscheduler", "argon2", "joserfc", "uvloop", "yoyo", "rich"},
    "events replay": WEB | {"apscheduler", "argon2", "joserfc", "uvloop", "yoyo", "rich"},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_loads_what_it_needs_and_nothing_else(on_migrated: Project, name: str) -> None:
    args, status, stdin, needed = COMMANDS[name]
    loaded = packages(loaded_by(on_migrated, *args, status=status, stdin=stdin))
    assert needed <= loaded
    assert loaded & NOT_LOADED[name] == set()


ALWAYS = {"psycopg", "hypercorn", "pydantic", "loguru", "uvloop"}
APIS = [f"run-{module.name}-http" for module in modules() if module.process]
NEEDED = {
    **dict.fromkeys(APIS, ALWAYS | {"starlette", "joserfc"}),
    "run-all-in-one": ALWAYS | {"starlette", "apscheduler", "argon2", "joserfc"},
    "run-auth-http": ALWAYS | {"starlette", "argon2", "joserfc"},
    "run-cron-manager": ALWAYS | {"apscheduler"},
    "run-event-consumer": ALWAYS,
    "run-backup-agent": ALWAYS,
}
# yoyo: only when something is pending; jinja2: only with the first page of the console; zstandard: only with a target
NEVER = {"yoyo", "rich", "httpx2", "requests", "nats", "redis", "jinja2", "zstandard", "boto3"}
REFUSED = {
    **dict.fromkeys(APIS, NEVER | {"apscheduler", "argon2"}),
    "run-all-in-one": NEVER,
    "run-platform-http": NEVER | {"apscheduler"},  # argon2 for the console's sign-in
    "run-auth-http": NEVER | {"apscheduler"},
    "run-cron-manager": NEVER | {"starlette", "argon2", "joserfc"},
    "run-event-consumer": NEVER | {"starlette", "argon2", "joserfc", "apscheduler"},
    "run-backup-agent": NEVER | {"starlette", "argon2", "joserfc", "apscheduler"},
}


def test_every_process_is_tested_here() -> None:
    assert set(PROCESSES) == set(NEEDED) == set(REFUSED)


@pytest.mark.parametrize("name", NEEDED)
def test_a_process_loads_what_it_needs_and_nothing_else(on_migrated: Project, name: str) -> None:
    loaded = packages(loaded_by_process(on_migrated, name))
    assert NEEDED[name] <= loaded
    assert loaded & REFUSED[name] == set()


@pytest.mark.parametrize(("name", "expected"), [("run-platform-http", True), ("run-cron-manager", False)])
def test_the_client_of_redis_is_loaded_where_a_url_is_set_and_used(
    on_migrated: Project, name: str, expected: bool
) -> None:
    on_migrated.env["REDIS_URL"] = "redis://127.0.0.1:1"  # nothing listens there, and the process starts
    assert ("redis" in packages(loaded_by_process(on_migrated, name))) is expected
