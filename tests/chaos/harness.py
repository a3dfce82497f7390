"""Load, chaos, recovery, verdict."""

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.deployment import CONSUMER, CRON, LEASE_S, Deployment, pick
from tests.chaos.load import Load, database_of
from tests.chaos.verdict import NARROW_LIMIT, Verdict, judge
from tests.conftest import Holder, create_database
from tests.support.project import Project

_RECOVERY_S = 150.0  # a job that failed in three outages waits for 81 s


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of what. The same seed gives the same order of actions, but not the same moments."""

    seed: int
    kills: int
    restarts: int
    freezes: int
    drains: int
    consumers: int = 6
    managers: int = 2
    every_s: float = 0.1
    gap_s: float = 0.4

    def actions(self, rng: random.Random) -> list[str]:
        """Return what to do, one after the other; outages evenly apart, but not at the ends."""
        found = ["kill"] * self.kills + ["freeze"] * self.freezes + ["drain"] * self.drains
        rng.shuffle(found)
        for position in range(self.restarts, 0, -1):
            found.insert(len(found) * position // (self.restarts + 1), "restart")
        return found


async def unleash(plan: Plan, project: Project, holder: Holder, folder: Path, say=print) -> Verdict:
    """Carry out the plan on a deployment of its own; return the verdict."""
    say(f"seed {plan.seed}: {plan}")
    rng = random.Random(plan.seed)
    deployment = Deployment.of(project, create_database(holder.server), folder)
    deployment.start(CONSUMER).ready()  # migrates, and registers the subscriptions
    database = deployment.database
    database.run("UPDATE kernel.queues SET concurrency = %s WHERE name = 'narrow'", NARROW_LIMIT)
    for _ in range(plan.consumers - 1):
        deployment.start(CONSUMER)
    for _ in range(plan.managers):
        deployment.start(CRON)
    load = Load(random.Random(plan.seed + 1), plan.every_s)
    started = time.monotonic()
    async with database_of(deployment) as db:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(db, stop))
            await _chaos(plan, rng, deployment, holder, say)
            stop.set()
    say(f"{time.monotonic() - started:.0f} s of chaos; now everything may recover")
    await recover(deployment)
    say(f"recovered after {time.monotonic() - started:.0f} s")
    (folder / "incidents").write_text("".join(f"{incident}\n" for incident in deployment.incidents))
    verdict = await asyncio.to_thread(judge, deployment, load)
    say(verdict.table())
    return verdict


async def _chaos(plan: Plan, rng: random.Random, deployment: Deployment, holder: Holder, say) -> None:
    outages = ["fast", "immediate", "kill"] * (plan.restarts // 3 + 1)
    rng.shuffle(outages)
    actions = plan.actions(rng)
    async with asyncio.TaskGroup() as group:
        outage: asyncio.Task[None] | None = None
        for position, action in enumerate(actions):
            await asyncio.sleep(rng.uniform(0.25, 1) * plan.gap_s)
            deployment.replace_ended()
            if position % 50 == 0:
                say(f"{position} of {len(actions)}")
            if action == "restart":
                if outage is not None:
                    await outage
                seconds = rng.choice([rng.uniform(0.2, 1), rng.uniform(LEASE_S, 2 * LEASE_S)])
                outage = group.create_task(deployment.interrupt(holder, outages.pop(), seconds))
            elif action == "freeze":
                await _freeze(rng, deployment, group)
            elif action == "kill":
                cron = pick(rng, _free(deployment, CRON)) if rng.random() < 0.15 else None
                deployment.kill(cron or await _at_work(rng, deployment))
            else:
                # a process that has only just been started knows no SIGTERM yet, and has done nothing
                serving = [pid for pid in _free(deployment, CRON) if deployment.serves(pid)]
                cron = pick(rng, serving) if rng.random() < 0.15 else None
                group.create_task(deployment.drain(cron or await _at_work(rng, deployment)))


async def _freeze(rng: random.Random, deployment: Deployment, group: asyncio.TaskGroup) -> None:
    """Freeze a consumer that is in the midst of a handler, or a cron manager, for longer than a lease lasts."""
    seconds = rng.uniform(1.6, 2.2) * LEASE_S
    if rng.random() < 0.15 and (pid := pick(rng, _free(deployment, CRON))):
        group.create_task(deployment.freeze(pid, seconds))
        return
    while True:
        pid = await _at_work(rng, deployment)
        task = group.create_task(deployment.freeze(pid, seconds))
        await asyncio.sleep(0.02)
        if not (task.done() and not task.result()):
            return


def _free(deployment: Deployment, command: str) -> list[int]:
    return [pid for pid in deployment.pids(command) if pid not in deployment.lame]


async def _at_work(rng: random.Random, deployment: Deployment) -> int:
    """Return a consumer to hit, as soon as half of them work again: who has done nothing has nothing to lose."""
    while len(deployment.workers()) < deployment.consumers // 2:
        deployment.replace_ended()
        await asyncio.sleep(0.05)
    pid = pick(rng, deployment.workers())
    assert pid is not None
    return pid


async def recover(deployment: Deployment) -> None:
    """Let healthy processes catch up with ticks and jobs, then stop them."""
    deadline = time.monotonic() + _RECOVERY_S

    while not all(map(deployment.serves, deployment.alive)) and time.monotonic() < deadline:
        deployment.replace_ended()
        await asyncio.sleep(0.2)

    async def until(sql) -> None:
        while deployment.database.all(sql) != [(0,)] and time.monotonic() < deadline:
            deployment.replace_ended()
            await asyncio.sleep(0.2)

    await until("SELECT count(*) FROM kernel.schedules WHERE next_fire_at < now() - interval '1.5 seconds'")
    await deployment.stop(CRON)
    await until("SELECT count(*) FROM kernel.jobs")
    await deployment.stop(CONSUMER)
