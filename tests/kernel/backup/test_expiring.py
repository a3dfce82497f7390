"""What pgBackRest is told to expire, against an oracle that tries every moment."""

import random
from dataclasses import dataclass, field, replace
from datetime import datetime

import pytest

from app.kernel.backup.pgbackrest.expiring import fulls_with_wal
from app.kernel.backup.retention import retained
from tests.kernel.backup.test_retention import (
    BEGIN,
    HOUR,
    POLICY,
    SEGMENT,
    World,
    backup,
    check_every_moment,
    number_of,
)


@dataclass
class Repository(World):
    """One with full, differential and incremental backups, from which pgBackRest expires."""

    full: set[str] = field(default_factory=set)

    def live(self) -> None:
        known = len(self.all_backups)
        super().live()
        if len(self.all_backups) == known:
            return
        taken = self.all_backups[-1]
        kind = self.rng.choice(["full", "diff", "diff", "incr", "incr"]) if self.full else "full"
        if kind == "full":
            self.full.add(taken.id)
            return
        whole = [one for one in self.backups[:-1] if kind == "incr" or one.id in self.full]
        self.all_backups[-1] = self.backups[-1] = replace(taken, depends_on=(*whole[-1].depends_on, whole[-1].id))

    def prune(self, end: datetime) -> None:
        kept = retained(self.backups, self.lines(), POLICY, end)
        self.backups = sorted((*kept.window, *kept.longer), key=lambda one: one.finished_at)
        ids = {one.id for one in self.backups}
        assert [one.id for one in self.backups if not ids.issuperset(one.depends_on)] == []
        fulls = [one for one in self.backups if one.id in self.full]
        count = fulls_with_wal(fulls, kept.window)
        assert count > 0
        retention = fulls[-count]
        begin = retention.timeline, number_of(retention.start_lsn) // SEGMENT
        own = {(one.timeline, number_of(one.start_lsn) // SEGMENT) for one in self.backups}  # without which none opens
        self.wal = {one for one in self.wal if one >= begin or one in own}


@pytest.mark.parametrize("seed", range(8))
def test_every_moment_of_the_window_can_be_restored_from_chains_of_backups(seed: int) -> None:
    check_every_moment(Repository(random.Random(seed)))


def test_wal_begins_at_the_full_backup_before_the_window_in_every_cluster() -> None:
    first, second, third = (backup(BEGIN + number * HOUR, number) for number in (1, 3, 5))
    differential = backup(BEGIN + 4 * HOUR, 4, depends_on=second.id)
    fulls = [first, second, third]
    assert fulls_with_wal(fulls, [third]) == 1
    assert fulls_with_wal(fulls, [differential, third]) == 2
    other = backup(BEGIN + 2 * HOUR, 90, cluster="8")
    assert fulls_with_wal([first, other, second, third], [other, differential, third]) == 3
