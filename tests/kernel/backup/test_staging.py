"""Restores take the place of a data folder at the end, at once, and refuse a place that is none."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.kernel.backup.staging import staged
from app.kernel.errors import Conflict
from tests.support.project import ROOT

KILLED = """
import errno, os, signal, sys
from pathlib import Path

from app.kernel.backup import staging as module

place, left, can_exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"

def killed(work):
    def call(*arguments):
        global left
        done = work(*arguments)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    return call

def refuse(*_):
    raise OSError(errno.EINVAL, "renameat2")

with module.staged(place, replaces=True) as staging:
    staging.data.mkdir()
    (staging.data / "PG_VERSION").write_text("restored")
    module._exchange = killed(module._exchange if can_exchange else refuse)
    Path.rename = killed(Path.rename)
    staging.finish()
"""


def test_a_place_that_leads_nowhere_or_whose_neighbour_is_a_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Conflict, match="is no folder of its own"), staged(tmp_path / "link", replaces=False):
        pass
    (tmp_path / "data.restoring").touch()
    with pytest.raises(Conflict, match=r"data\.restoring is in the way"), staged(tmp_path / "data", replaces=False):
        pass
    assert (tmp_path / "data.restoring").is_file()


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 9])
def test_a_restore_that_is_killed_while_it_takes_the_place_leaves_both_data_folders(
    tmp_path: Path, calls: int, *, can_exchange: bool
) -> None:
    place = tmp_path / "data"
    place.mkdir()
    (place / "PG_VERSION").write_text("former")
    command = [sys.executable, "-c", KILLED, str(place), str(calls), str(can_exchange)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    wanted = -signal.SIGKILL if calls <= (2 if can_exchange else 4) else 0
    assert ended.returncode == wanted, ended.stderr
    found = {path.parent: path.read_text() for path in tmp_path.rglob("PG_VERSION")}
    assert sorted(found.values()) == ["former", "restored"]
    if can_exchange:
        assert found[place] == ("former" if calls == 1 else "restored")
    if calls == 9:
        assert found[place] == "restored"
        assert not place.with_name("data.restoring").exists()
