"""A fleet under load, in which each kind of process is killed once. `just fleet --seconds 600` does it for long."""

from pathlib import Path

from tests.support.fleet import KINDS, fleet_of, unleash
from tests.support.project import Project


async def test_each_kind_of_a_fleet_is_killed_and_nothing_acknowledged_is_lost(cli: Project, tmp_path: Path) -> None:
    with fleet_of(cli, tmp_path, partition_s=0) as fleet:
        outcome = await unleash(fleet, iter(KINDS), settle_s=1)
    for kind, seconds in outcome.back_s.items():
        print(f"seconds from {kind} to the first success: {seconds[0]}")
    print(dict(outcome.answers))
    print(outcome.verdict.table())
    assert outcome.verdict.holds, outcome.verdict.table()
