"""`just rename` makes a clone one's own: lint, contracts, commands and the fast tests hold under the new name."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import table
from app.kernel.product import NAME
from tests.support import project
from tests.support.project import ROOT

NEW = "acme"
FAST = [
    "tests/kernel/http/test_middleware.py",
    "tests/kernel/telemetry/test_spans.py",
    "tests/kernel/test_addresses.py",
    "tests/kernel/test_decoding.py",
    "tests/modules/auth/test_domain.py",
    "tests/commands/test_config.py",
    "tests/test_loaded_modules.py::test_help_and_version_load_no_infrastructure_and_only_manifests",
    "tests/test_loaded_modules.py::test_completing_the_first_word_loads_only_the_command_line",
]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of everything that is committed, as the first commit of a repository of its own."""
    folder = tmp_path / "clone"
    project.clone(folder)
    for command in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "Begin"]):
        git(folder, *command)
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=300)


def rename(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, ".ci/rename.py", name)


def test_a_renamed_clone_has_every_command_and_passes_lint_contracts_and_fast_tests(clone: Path) -> None:
    renamed = rename(clone, NEW)
    assert renamed.returncode == 0, renamed.stdout + renamed.stderr
    tools = Path(sys.executable).parent
    for tool in (["ruff", "check"], ["ruff", "format", "--check"], ["lint-imports", "--no-cache"]):
        done = run(clone, str(tools / tool[0]), *tool[1:])
        assert done.returncode == 0, done.stdout + done.stderr
    listed = run(clone, sys.executable, "-m", NEW, "--help").stdout
    assert set(table()) <= {line.split()[0] for line in listed.splitlines() if line.startswith("  ")}
    for name in ("run-all-in-one", "auth", "queues"):
        done = run(clone, sys.executable, "-m", NEW, name, "--help")
        assert done.stdout.startswith(f"Usage: {NEW} {name} "), done.stderr
    left = rf"{NAME}[.](kernel|modules|commands|processes|cli)|{NAME}/(kernel|modules)|\b{NAME} (run-|config |migrate )"
    found = run(clone, "git", "grep", "-nE", f"{left}|-m {NAME}\\b|py.enterprise.bluepr[i]nt")
    assert found.stdout == ""
    assert (clone / f"docs/{NEW}.1").read_text() == run(clone, sys.executable, "-m", NEW, "man").stdout
    tested = run(clone, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FAST)
    assert tested.returncode == 0, tested.stdout[-4000:]


def test_code_takes_the_name_from_its_constant() -> None:
    # words of published secrets, a temporary table, keys of requests: nothing that anybody sees
    allowed = {"kernel/config/safety.py", "kernel/db/postgres.py", "kernel/http/asgi.py"}
    # app_version, a field
    allowed |= {"commands/backup/listing.py"}
    word = re.compile(rf"(?<![\w.])(?<!authenticator ){NAME}(?![A-Za-z0-9])")
    found: set[str] = set()
    for path in (ROOT / NAME).rglob("*.py"):
        tree = ast.parse(path.read_text())
        documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        if any(word.search(str(node.value)) for node in texts if id(node) not in documents):
            found.add(str(path.relative_to(ROOT / NAME)))
    assert found <= allowed


REFUSED = {
    "Acme": "is no name",
    "acme-shop": "is no name",
    "2fast": "is no name",
    "a": "is no name",
    "anextremelylongname": "is no name",
    "async": "of Python",
    "json": "of Python",
    "starlette": "is an installed package",
    "kernel": "is the name of a part",
    "auth": "is the name of a part",
    NAME: "is the name of a part",
}


def test_a_name_that_cannot_be_is_refused_and_nothing_is_changed(clone: Path) -> None:
    for name, reason in REFUSED.items():
        refused = rename(clone, name)
        assert refused.returncode == 1
        assert refused.stderr.startswith("rename: ")
        assert reason in refused.stderr, name
    assert git(clone, "status", "--porcelain") == ""


def test_a_tree_with_changes_is_refused_and_left_alone(clone: Path) -> None:
    (clone / "README.md").write_text("changed")
    refused = rename(clone, NEW)
    assert refused.stderr == "rename: commit or stash first: 1 file has changes\n"
    assert git(clone, "status", "--porcelain") == " M README.md\n"
