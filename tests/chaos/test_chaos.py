"""The short form of the chaos: seconds instead of minutes. The long one is `just chaos`."""

import random
from pathlib import Path

from tests.chaos.harness import Plan, unleash
from tests.conftest import Holder
from tests.support.project import Project


async def test_jobs_events_and_schedules_lose_nothing(cli: Project, own_holder: Holder, tmp_path: Path) -> None:
    plan = Plan(seed=random.randrange(1_000_000), kills=15, restarts=2, freezes=2, drains=2, consumers=4, gap_s=0.1)
    folder = tmp_path / "chaos"
    folder.mkdir()
    verdict = await unleash(plan, cli, own_holder, folder)
    assert verdict.holds, f"seed {plan.seed}\n{verdict.table()}"
