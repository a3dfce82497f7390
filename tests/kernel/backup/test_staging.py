"""Restores take the place of a data folder at the end, at once, and refuse a place that is none."""

import errno
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from app.kernel.backup import staging as staging_module
from app.kernel.backup.staging import staged
from app.kernel.errors import Conflict


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
    left = calls

    def killed(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal left
            done = work(*arguments)
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return call

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "renameat2")

    if not (child := os.fork()):
        with suppress(BaseException):  # never back into the tests
            with staged(place, replaces=True) as staging:
                staging.data.mkdir()
                (staging.data / "PG_VERSION").write_text("restored")
                staging_module._exchange = killed(staging_module._exchange if can_exchange else refuse)
                Path.rename = killed(Path.rename)  # type: ignore[method-assign]
                staging.finish()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if calls <= (2 if can_exchange else 4) else 0)
    found = {path.parent: path.read_text() for path in tmp_path.rglob("PG_VERSION")}
    assert sorted(found.values()) == ["former", "restored"]
    if can_exchange:
        assert found[place] == ("former" if calls == 1 else "restored")
    if calls == 9:
        assert found[place] == "restored"
        assert not place.with_name("data.restoring").exists()
