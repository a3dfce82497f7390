"""`app demo`: where it refuses to run, and that it keeps to itself. What it shows is seen in tests/console."""

import fcntl
from pathlib import Path

import pytest

from app.modules import MODULES
from tests.support.project import Project


@pytest.mark.parametrize("environment", ["test", "staging", "production"])
def test_it_is_refused_outside_local(cli: Project, tmp_path: Path, environment: str) -> None:
    done = cli.app("demo", "--data", str(tmp_path / "demo"), env={"APP_ENV": environment})
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr == f"app: app demo makes data up, so it only runs with APP_ENV=local, not {environment}\n"
    assert not (tmp_path / "demo").exists()


def test_a_second_one_does_not_touch_the_data_of_the_first(cli: Project, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = cli.app("demo", "--fresh", "--data", str(tmp_path), env={"APP_ENV": "local"})
    assert done.returncode == 73
    assert done.stderr == f"app: another app demo uses {tmp_path}; stop it with Ctrl-C\n"
    assert [file.name for file in tmp_path.iterdir() if file.name not in ("scratch", "lock")] == []


def test_no_other_process_has_its_module() -> None:
    assert "demo" not in MODULES
