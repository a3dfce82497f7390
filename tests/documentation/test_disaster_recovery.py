"""Every shell block of docs/disaster-recovery.md runs as it stands, in order, through a mistake and the losses."""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.kernel.product import NAME
from tests.conftest import SUPERUSER, in_memory
from tests.documentation.blocks import blocks
from tests.documentation.session import run
from tests.support.debian import free_port
from tests.support.project import ROOT, Project, clone, eventually


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A place for a clone and for restored data."""
    with in_memory(tmp_path) as made:
        yield made


@pytest.fixture
def deployment(cli: Project, folder: Path) -> Iterator[Project]:
    """A clone that runs on an embedded database of its own and stores WAL every second, with `app` on the PATH."""
    clone(folder / "clone", compiled=True)
    script = folder / "bin" / NAME
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {NAME} "$@"\n')
    script.chmod(0o755)
    path = os.pathsep.join([str(script.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {"APP_ENV": "local", "PATH": path, "HOME": str(folder), "HTTP_SERVER_PORT": str(free_port())}
    env |= {"BACKUP_WAL_INTERVAL": "1s", "LOGGER_FORMAT": "json"}
    project = Project(folder / "clone", cli.scratch, {**cli.env, **env}, running=cli.running)
    project.start("run-all-in-one", "--port", env["HTTP_SERVER_PORT"]).ready()
    username, password = SUPERUSER
    made = project.app("auth", "create-superuser", "--username", username, "--password-stdin", stdin=password)
    assert made.returncode == 0, made.stderr
    yield project
    project.end()


def roles(project: Project) -> list[str]:
    listed = project.app("auth", "roles", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    return [role["name"] for role in json.loads(listed.stdout)["items"]]


def test_what_disaster_recovery_says(deployment: Project) -> None:
    found = [block for block in blocks(ROOT / "docs/disaster-recovery.md") if block.language == "sh"]
    live, stopped = ([block for block in found if block.mark == mark] for mark in ("", "after Ctrl-C"))
    seen = run(live, deployment.root, deployment.environment(), 300)

    assert deployment.app("auth", "roles", "create", "--name", "kept").returncode == 0
    time.sleep(0.01)  # the moment is after the commit
    moment = datetime.now(UTC).isoformat()
    assert deployment.app("db", "shell", "-c", "DELETE FROM auth.roles").returncode == 0
    assert roles(deployment) == []
    [process] = deployment.running
    assert process.stop(60) == 0, process.said()
    eventually(lambda: not list((deployment.root / ".local").rglob("postmaster.pid")))

    env = {**deployment.environment(), "MOMENT": moment}
    seen += run(stopped[:2], deployment.root, env, 300)
    assert (deployment.root / "restored" / "PG_VERSION").exists()
    assert roles(deployment) == ["kept"]
    seen += run(stopped[2:], deployment.root, env, 300)
    assert roles(deployment) == ["kept"]
    assert [str(b) for b in found if f"### {b}" not in seen and not b.mark.startswith("not run: ")] == []
