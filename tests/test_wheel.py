"""A wheel built from the project and installed elsewhere has every command, its migrations and its default settings."""

import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import ROOT
from app.cli import table
from app.kernel.product import NAME
from tests.commands.outcome import printed_json
from tests.conftest import TestDatabase
from tests.support.project import Project


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with the wheel and, by a path file, what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = [sys.executable, "-m", "uv"]
    build = [*uv, "build", "-q", "--wheel", "--no-build-isolation", "--offline", "-o", str(folder), str(ROOT)]
    subprocess.run([*build, "--python", sys.executable], check=True)
    venv.create(folder / "venv", symlinks=True)
    python = str(folder / "venv/bin/python")
    [wheel] = folder.glob("*.whl")
    subprocess.run([*uv, "pip", "install", "-q", "--no-deps", "--offline", "--python", python, str(wheel)], check=True)
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "venv"


@pytest.fixture
def elsewhere(installed: Path, tmp_path: Path) -> Iterator[Project]:
    """The installed command, in an empty folder."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "scratch").mkdir()
    project = Project(tmp_path / "empty", tmp_path / "scratch", {"HOME": str(tmp_path)}, str(installed / "bin/python"))
    yield project
    project.end()
    assert list((tmp_path / "empty").iterdir()) == []


def package(installed: Path) -> Path:
    [found] = installed.glob(f"lib/python*/site-packages/{NAME}")
    return found


def test_the_wheel_has_what_the_checkout_has_and_no_secrets(installed: Path) -> None:
    bundled = package(installed) / "_bundled"
    expected = {f"{kind}/{path.name}" for kind in ("migrations", "settings") for path in (ROOT / kind).glob("[!.]*.*")}
    expected |= {"docs/runbooks.md"}
    assert {str(path.relative_to(bundled)) for path in bundled.rglob("*") if path.is_file()} == expected
    for kind in ("*.py", "*.html", "*.css", "*.js", "*.svg", "*LICENSE"):
        code = {str(path.relative_to(ROOT / NAME)) for path in (ROOT / NAME).rglob(kind)}
        assert {str(path.relative_to(package(installed))) for path in package(installed).rglob(kind)} == code


def test_the_installed_command_lists_every_command(installed: Path, tmp_path: Path) -> None:
    script = str(installed / "bin" / NAME)
    listed = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert set(table()) <= {line.split()[0] for line in listed.splitlines() if line.startswith("  ")}


def test_man_finds_the_page_of_the_installed_command(installed: Path) -> None:
    assert (installed / f"share/man/man1/{NAME}.1").read_text() == (ROOT / f"docs/{NAME}.1").read_text()


def test_settings_and_data_are_found_wherever_it_is_installed(elsewhere: Project, installed: Path) -> None:
    shown = printed_json(elsewhere.app("config", "show", "--json"))["settings"]
    assert shown["process.grace"] == {"value": 5, "source": "settings/test.yaml"}
    places = subprocess.run(
        [elsewhere.python, "-c", f"import {NAME}; print({NAME}.ROOT); print({NAME}.DATA)"],
        cwd=elsewhere.root,
        env=elsewhere.environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert places == [str(package(installed) / "_bundled"), f"{elsewhere.env['HOME']}/.local/state/{NAME}"]


def test_no_migration_is_created_inside_the_installed_package(elsewhere: Project, installed: Path) -> None:
    done = elsewhere.app("migrate", "create", "auth", "add_x")
    assert (done.returncode, done.stdout) == (77, "")
    assert "created in a checkout" in done.stderr
    assert list((package(installed) / "_bundled/migrations").glob("*add_x*")) == []


def test_it_migrates_serves_and_stops(elsewhere: Project, empty_database: TestDatabase) -> None:
    elsewhere.env |= empty_database.env
    planned = printed_json(elsewhere.app("migrate", "plan", "--json"))["items"]
    files = {path.stem for path in (ROOT / "migrations").glob("*.sql") if not path.stem.endswith(".rollback")}
    assert {migration["id"] for migration in planned} == files
    process = elsewhere.start("run-all-in-one")
    process.ready()
    process.signal(signal.SIGTERM)
    assert process.wait() == 0, process.said()
    assert elsewhere.app("migrate", "plan").stdout == "nothing to apply\n"
