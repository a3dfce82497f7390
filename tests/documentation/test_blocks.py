"""Every shell block of the README and of docs/operating.md runs as it stands, in order, in bash on a terminal."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from app.kernel.product import NAME
from tests.commands.terminal import INTERRUPT
from tests.conftest import SUPERUSER
from tests.documentation.blocks import Block, blocks
from tests.documentation.session import bash, run
from tests.support.debian import free_port
from tests.support.project import ROOT, Project, clone, eventually

JOB, ERROR, DEAD = (f"0193f7a0-0000-7000-8000-0000{end}" for end in ("1a2b3c4d", "5e6f7a8b", "9c0d1e2f"))
CAUSED, PURGED, PURGE = (f"0193f7a0-0000-7000-8000-0000{end}" for end in ("7c6b5a49", "8d7c6b5a", "9f8e7d6c"))
CAUSE = "1eba2e8e25c707f8b3f60c690fb51f07"
# what docs/operating.md tells about: a report that fails, one that was given up, and an error that was captured
EXAMPLES = f"""
    INSERT INTO kernel.queues (name) VALUES ('reports');
    INSERT INTO kernel.jobs (id, queue, task, payload, state, rank, attempt, max_attempts, timeout_s, run_at, errors)
    VALUES ('{JOB}', 'reports', 'reports.render', '{{"report": 7}}', 'scheduled', 0, 1, 10, 60,
        now() + interval '1 day', '[{{"attempt": 1, "at": "2026-11-22T10:00:00Z", "error": "TimeoutError"}}]');
    INSERT INTO kernel.dead_letters (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at)
    VALUES ('{DEAD}', 'reports', 'reports.render', 'attempts', 10, 10, 60, now());
    INSERT INTO kernel.dead_letters
        (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at, died_at, cause)
    VALUES ('{CAUSED}', 'reports', 'reports.mail', 'attempts', 10, 10, 60, now(), now() - interval '1 s', '{CAUSE}');
    INSERT INTO kernel.purged_dead_letters
        (id, queue, task, reason, attempt, max_attempts, timeout_s, created_at, purge_id)
    VALUES ('{PURGED}', 'reports', 'reports.mail', 'attempts', 10, 10, 60, now(), '{PURGE}');
    INSERT INTO kernel.subscriptions (subscriber, event_type) VALUES ('billing.welcome', 'auth.actor_created');
    INSERT INTO kernel.errors (id, fingerprint, kind, type, title, culprit, count, processes, first_seen_at,
        last_seen_at, first_release, last_release, samples)
    VALUES ('{ERROR}', 'f', 'request', 'KeyError', 'KeyError: x', 'app.x', 3, ARRAY['run-all-in-one'], now(), now(),
        '1', '1', '[]');
"""


def shell_blocks(document: str) -> list[Block]:
    return [block for block in blocks(ROOT / document) if block.language == "sh"]


@pytest.fixture
def operating(cli: Project, tmp_path: Path) -> Project:
    """A clone that runs on an embedded database of its own, with the examples, and `app` on the PATH."""
    clone(tmp_path / "clone", compiled=True)
    script = tmp_path / "bin" / NAME
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {NAME} "$@"\n')
    script.chmod(0o755)
    path = os.pathsep.join([str(script.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {"PATH": path, "HOME": str(tmp_path), "HTTP_SERVER_PORT": str(free_port()), "UV_NO_BUILD_ISOLATION": "1"}
    project = Project(tmp_path / "clone", cli.scratch, {**cli.env, **env}, running=cli.running)
    project.start("run-all-in-one", "--port", env["HTTP_SERVER_PORT"]).ready()
    username, password = SUPERUSER
    made = project.app("auth", "create-superuser", "--username", username, "--password-stdin", stdin=password)
    assert made.returncode == 0, made.stderr
    added = project.app("db", "shell", "-v", "ON_ERROR_STOP=1", "-c", EXAMPLES)
    assert added.returncode == 0, added.stderr
    return project


def test_what_operating_says(operating: Project) -> None:
    found = shell_blocks("docs/operating.md")
    seen = run([block for block in found if not block.mark], operating.root, operating.environment(), 300)
    [process] = operating.running
    assert process.stop() == 0, process.said()
    eventually(lambda: not list((operating.root / ".local").rglob("postmaster.pid")))
    last = [block for block in found if block.mark == "after Ctrl-C"]
    seen += run(last, operating.root, operating.environment(), 300)
    assert [str(b) for b in found if f"### {b}" not in seen and not b.mark.startswith("not run: ")] == []


@pytest.fixture
def newcomer(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A fresh clone, and the environment of somebody who has nothing but Python. Port 8080 is a free port."""
    clone(tmp_path / "clone")
    port = free_port()
    (tmp_path / ".curlrc").write_text(f'connect-to = "localhost:8080:127.0.0.1:{port}"\n')
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG") or k.upper().startswith(("PIP_", "HTTPS_"))}
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pip"
    env = {"PIP_CACHE_DIR": str(cache), **kept, "HOME": str(tmp_path), "HTTP_SERVER_PORT": str(port)}
    return tmp_path / "clone", env


def test_what_the_readme_says(newcomer: tuple[Path, dict[str, str]]) -> None:
    folder, env = newcomer
    found = shell_blocks("README.md")
    [first] = [block for block in found if block.mark == "until Ctrl-C"]
    with bash(first.text, folder, env) as running:
        running.expect("Ctrl-C", 400)
        seen = run([block for block in found if not block.mark], folder, env, 200)
        assert '"username":"root"' in seen
        assert '"name":"run-all-in-one"' in seen
        running.type(INTERRUPT)
        assert running.wait() == 0, running.seen
    known = ("until Ctrl-C", "test", "not run: ")
    assert [str(b) for b in found if f"### {b}" not in seen and not b.mark.startswith(known)] == []
