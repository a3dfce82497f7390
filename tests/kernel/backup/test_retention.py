"""What is kept, against an oracle that tries every moment."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from app.kernel.backup import Backup
from app.kernel.backup.retention import Line, Policy, retained, trusted_now
from app.kernel.backup.timelines import Fork, Stretch, lsn_text, timeline_at, way

SEGMENT = 16 * 1024 * 1024
BEGIN = datetime(2026, 1, 5, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
POLICY = Policy(keep=10 * DAY, weekly=0, monthly=0)


def backup(at: datetime, segment: float = 1.0, timeline: int = 1, cluster: str = "7", depends_on: str = "") -> Backup:
    start = int(segment * SEGMENT)
    return Backup(
        id=f"{at:%Y%m%dT%H%M%SZ}-{timeline:04x}",
        cluster=cluster,
        engine="builtin",
        started_at=at - HOUR,
        finished_at=at,
        timeline=timeline,
        start_lsn=lsn_text(start),
        stop_lsn=lsn_text(start + 1000),
        server_version=180004,
        app_version="1",
        schema="",
        database="app",
        size_bytes=1,
        stored_bytes=1,
        depends_on=(depends_on,) if depends_on else (),
    )


def daily(days: int) -> list[Backup]:
    return [backup(BEGIN + number * DAY, number) for number in range(1, days + 1)]


def ids(backups: Collection[Backup]) -> list[str]:
    return [one.id for one in backups]


@dataclass
class Branch:
    """A timeline of the model: written from an hour on, one segment in each hour."""

    timeline: int
    since: int
    position: int
    forks: tuple[Fork, ...] = ()
    until: int | None = None

    def position_at(self, hour: int) -> int:
        return self.position + (hour - self.since) * SEGMENT


@dataclass
class World:
    """A cluster with backups, failovers and restores to earlier moments; its WAL is stored as it is written."""

    rng: random.Random
    hour: int = 0
    branches: list[Branch] = field(default_factory=lambda: [Branch(1, 0, SEGMENT)])
    all_backups: list[Backup] = field(default_factory=list)
    all_wal: dict[tuple[int, int], datetime] = field(default_factory=dict)
    backups: list[Backup] = field(default_factory=list)
    """What the prunings have left, as `wal`."""
    wal: set[tuple[int, int]] = field(default_factory=set)

    @property
    def now(self) -> datetime:
        return BEGIN + self.hour * HOUR

    def live(self) -> None:
        """Let an hour pass."""
        branch = self.branches[-1]
        position = branch.position_at(self.hour)
        segment = branch.timeline, position // SEGMENT
        self.all_wal[segment] = self.now + HOUR
        self.wal.add(segment)
        if self.rng.random() < 1 / 20:
            one = backup(self.now + HOUR / 2, position / SEGMENT, branch.timeline)
            self.all_backups.append(one)
            self.backups.append(one)
        self.hour += 1
        if (chance := self.rng.random()) < 1 / 100:
            back = 0 if chance < 1 / 300 else self.rng.randrange(1, 100)  # a failover, or a restore
            self.fork(max(SEGMENT, branch.position_at(self.hour) - back * SEGMENT), is_restored=back > 0)

    def fork(self, position: int, *, is_restored: bool) -> None:
        branch = self.branches[-1]
        line = next(s.timeline for s in reversed(way(branch.timeline, branch.forks)) if s.begin <= position)
        before = tuple(fork for fork in branch.forks if fork.timeline < line)
        if is_restored and not reachable(way(line, before), position - 1, self.now, self.backups, self.wal):
            return
        branch.until = self.hour
        self.branches.append(Branch(branch.timeline + 1, self.hour, position, (*before, Fork(line, position))))

    def lines(self) -> dict[int, Line]:
        stored = {branch.timeline: BEGIN + branch.since * HOUR for branch in self.branches}  # its history
        for line, number in self.wal:
            stored[line] = max(stored[line], self.all_wal[line, number])
        return {branch.timeline: Line(branch.forks, stored[branch.timeline]) for branch in self.branches}

    def prune(self, end: datetime) -> None:
        lines = self.lines()
        kept = retained(self.backups, lines, POLICY, end)
        firsts = {line: kept.first_segment(line, SEGMENT) for line in lines}
        self.backups = [*kept.window, *kept.longer]
        self.wal = {one for one in self.wal if (first := firsts[one[0]]) is not None and one[1] >= first}


def reachable(
    stretches: Sequence[Stretch],
    position: int,
    moment: datetime,
    backups: Collection[Backup],
    wal: Collection[tuple[int, int]],
) -> bool:
    """Say whether a position can be restored as it was at a moment, by trying every backup."""
    for one in backups:
        start = number_of(one.start_lsn)
        on_way = any(s.timeline == one.timeline and (s.end is None or start + 1000 <= s.end) for s in stretches)
        if not on_way or one.finished_at > moment or start + 1000 > position:
            continue
        numbers = range(start // SEGMENT, position // SEGMENT + 1)
        if all((timeline_at(stretches, number, SEGMENT), number) in wal for number in numbers):
            return True
    return False


def number_of(lsn: str) -> int:
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def check_every_moment(world: World) -> None:
    """Let a world live and be pruned: what all backups and WAL would restore, those that are kept must restore too."""
    tried = 0
    for _ in range(700):
        world.live()
        end = trusted_now(world.backups, world.now)
        if world.rng.random() > 1 / 25 or end is None:
            continue
        world.prune(end)
        for branch in world.branches:
            last = (world.hour if branch.until is None else branch.until) - 1
            for hour in range(max(branch.since, world.hour - 240), last, 11):
                state = way(branch.timeline, branch.forks), branch.position_at(hour), BEGIN + hour * HOUR
                if reachable(*state, world.all_backups, world.all_wal):
                    tried += 1
                    assert reachable(*state, world.backups, world.wal), f"timeline {branch.timeline}, hour {hour}"
    assert tried > 100
    assert len(world.wal) < len(world.all_wal)


@pytest.mark.parametrize("seed", range(8))
def test_every_moment_of_the_window_can_be_restored_after_any_prunings(seed: int) -> None:
    world = World(random.Random(seed))
    check_every_moment(world)
    assert len(world.backups) < len(world.all_backups)


def test_older_backups_are_kept_by_week_and_by_month_and_only_these() -> None:
    backups = daily(400)
    end = backups[-1].finished_at
    kept = retained(backups, {}, Policy(30 * DAY, weekly=8, monthly=6), end)
    begin = end - 30 * DAY
    base, *recent = kept.window
    assert recent == [one for one in backups if one.finished_at >= begin]
    assert base.finished_at == begin - DAY  # from it the beginning of the window is reached
    assert kept.first_segment(1, SEGMENT) == number_of(base.start_lsn) // SEGMENT
    weeks = [one for one in kept.longer if one.finished_at.weekday() == 6]
    months = [one for one in kept.longer if (one.finished_at + DAY).day == 1]
    assert len(weeks) == 8
    assert len({one.finished_at.month for one in (*months, base)}) == 7  # six that are over, and the one of the base
    assert {*weeks, *months} == {*kept.longer}


@pytest.mark.parametrize("days", [1, 2, 3, 30, 400])
def test_pruning_every_day_keeps_what_pruning_once_would_keep(days: int) -> None:
    policy = Policy(10 * DAY, weekly=4, monthly=3)
    present: list[Backup] = []
    for one in daily(days):
        present.append(one)
        kept = retained(present, {}, policy, one.finished_at)
        present = [*kept.longer, *kept.window]
    once = retained(daily(days), {}, policy, BEGIN + days * DAY)
    assert set(ids(once.window)) | set(ids(once.longer)) <= set(ids(present))
    assert len(present) <= 12 + 5 + 4


def test_the_newest_backup_is_kept_however_old_it_is() -> None:
    backups = daily(5)
    kept = retained(backups, {}, POLICY, BEGIN + 4000 * DAY)
    assert ids(kept.window) == ids(backups[-1:])
    assert kept.longer == ()
    assert retained([], {}, POLICY, BEGIN).window == ()


def test_a_clock_that_jumps_ahead_expires_nothing_until_three_backups_agree() -> None:
    backups, year = daily(60), 365 * DAY
    now = backups[-1].finished_at
    assert trusted_now(backups[:2], now) is None
    usual = retained(backups, {}, POLICY, now)
    for later in range(3):
        wrong = [backup(now + year + number * DAY, 61 + number) for number in range(later)]
        end = trusted_now([*backups, *wrong], now + year + later * DAY)
        assert end is not None
        assert end <= now
        assert set(ids(usual.window)) <= set(ids(retained([*backups, *wrong], {}, POLICY, end).window))
    wrong = [backup(now + year + number * DAY, 61 + number) for number in range(3)]
    assert trusted_now([*backups, *wrong], now + year + 3 * DAY) == now + year


def test_a_clock_that_is_behind_keeps_what_comes_from_the_future() -> None:
    backups = daily(60)
    end = trusted_now(backups, BEGIN + 20 * DAY)
    assert end == BEGIN + 20 * DAY
    kept = retained(backups, {}, POLICY, end)
    assert set(ids(backups[9:])) <= set(ids(kept.window))


def test_what_a_kept_backup_depends_on_is_kept() -> None:
    backups = daily(60)
    chain = {58: 30, 30: 3, 3: 1}
    linked = [
        replace(one, depends_on=(backups[chain[number]].id,) if number in chain else ())
        for number, one in enumerate(backups)
    ]
    linked[1] = replace(linked[1], depends_on=("of another target", linked[58].id))  # a circle ends as well
    kept = retained(linked, {}, POLICY, linked[-1].finished_at)
    assert ids(kept.longer) == [backups[number].id for number in (1, 3, 30)]
    assert ids(retained(backups, {}, POLICY, linked[-1].finished_at).longer) == []


def histories(old_until: datetime) -> dict[int, Line]:
    """Timeline 2 left timeline 1 at segment 25.5, five days after the backup there; then timeline 1 went on."""
    return {1: Line((), old_until), 2: Line((Fork(1, int(25.5 * SEGMENT)),), BEGIN + 60 * DAY)}


def test_a_timeline_is_reached_from_a_backup_before_it_was_left() -> None:
    backups = [*daily(30), backup(BEGIN + 50 * DAY, 40, 2), backup(BEGIN + 60 * DAY, 50, 2)]
    end = BEGIN + 55 * DAY
    kept = retained(backups, histories(BEGIN + 30 * DAY), POLICY, end)
    assert ids(kept.window) == ids([backups[24], *backups[-2:]])  # not those after segment 25.5
    assert kept.first_segment(1, SEGMENT) == kept.first_segment(2, SEGMENT) == 25
    assert kept.first_segment(0, SEGMENT) is None
    written = retained(backups, histories(BEGIN + 46 * DAY), POLICY, end)  # within the window
    assert ids(written.window) == ids([backups[24], backups[29], *backups[-2:]])


def test_a_timeline_that_was_left_long_ago_expires() -> None:
    backups = [*daily(30), backup(BEGIN + 50 * DAY, 40, 2), backup(BEGIN + 60 * DAY, 50, 2)]
    kept = retained(backups, histories(BEGIN + 30 * DAY), POLICY, BEGIN + 65 * DAY)
    assert ids(kept.window) == ids(backups[-2:])
    assert kept.first_segment(1, SEGMENT) is None
    assert kept.first_segment(2, SEGMENT) == 40


def test_the_newest_timeline_of_a_cluster_that_is_gone_can_be_restored_to_its_end() -> None:
    backups = daily(30)  # then timeline 2, which came from before the newest of them, and has no backup
    lines = histories(BEGIN + 30 * DAY) | {2: Line((Fork(1, int(25.5 * SEGMENT)),), BEGIN + 31 * DAY)}
    kept = retained(backups, lines, POLICY, BEGIN + 400 * DAY)
    assert ids(kept.window) == ids([backups[24], backups[29]])
