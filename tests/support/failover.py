"""A primary and a synchronous standby under a load of writes, jobs and schedules; the primary is killed."""

import asyncio
import random
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx

from tests.chaos.deployment import CONSUMER, CRON, Deployment, Incident
from tests.chaos.harness import recover
from tests.chaos.load import Load, database_of
from tests.chaos.module.jobs import PLAIN, TICK, TX
from tests.chaos.verdict import Verdict, judge
from tests.conftest import log_in
from tests.support.debian import DebianServer
from tests.support.project import Project, eventually

FIRST_S, NOTICED_S, AFTER_S = 1.5, 1.0, 2.0


@dataclass
class Pair:
    """Two servers; the first of `servers` is the primary. Stands in for a TestDatabase."""

    servers: list[DebianServer]

    @property
    def env(self) -> dict[str, str]:
        hosts = sorted(f"127.0.0.1:{server.port}" for server in self.servers)
        return {**self.servers[0].env, "POSTGRES_HOST": ",".join(hosts)}

    def all(self, sql: str, *parameters: object) -> list[tuple]:
        with self.servers[0].connect("app") as connection:
            return connection.execute(sql, parameters).fetchall()

    def run(self, sql: str, *parameters: object) -> None:
        with self.servers[0].connect("app") as connection:
            connection.execute(sql, parameters)

    def synchronise(self) -> None:
        """Let no commit be answered that the standby has not."""
        self.run("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.run("ALTER SYSTEM SET synchronous_commit = 'remote_apply'")
        self.run("SELECT pg_reload_conf()")
        eventually(lambda: self.all("SELECT sync_state FROM pg_stat_replication") == [("sync",)])

    def fail_over(self) -> float:
        """Kill the primary, and promote the standby a little later; return when it was killed, as time.time() does."""
        self.servers[0].kill()
        killed_at = time.time()
        self.servers.reverse()
        time.sleep(NOTICED_S)  # until whoever watches over the servers would have noticed
        self.servers[0].promote()
        return killed_at

    def rejoin(self) -> None:
        """Let the old primary follow the new one, from an empty folder."""
        shutil.rmtree(self.servers[1].data)
        self.servers[0].replicate(self.servers[1])
        self.synchronise()


@dataclass
class Posts:
    """Writes over HTTP, one after the other, in some threads."""

    client: httpx.Client
    acknowledged: list[str] = field(default_factory=list)
    answered: list[tuple[float, float]] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, threads: int = 3) -> Iterator[None]:
        started = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in started:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in started:
                thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            name, asked_at = f"r-{uuid.uuid4()}", time.time()
            answer = self.client.post("/auth/v1/roles", json={"name": name})
            answered_at = time.time()
            status = answer.status_code
            if status == 503 and "retry-after" not in answer.headers:
                status = -503
            if status == 201:
                self.acknowledged.append(name)
                self.answered.append((asked_at, answered_at))
            self.answers[status] += 1


@dataclass
class Outcome:
    """The verdict, and seconds from each kill to the first success of a kind."""

    verdict: Verdict
    answers: Counter[int]
    back_s: list[dict[str, float]]
    dead: list[str]
    outage_s: list[float]


async def fail_over_under_load(
    pair: Pair, project: Project, folder: Path, times: int = 1, say: Callable[[str], None] = print
) -> Outcome:
    """Kill the primary under load, so many times, and let the standby take over; then count."""
    settings = {**pair.env, "PROCESS_DRAIN_DELAY": "0s", "POSTGRES_POOL_TIMEOUT": "500ms"}
    deployment = Deployment.of(project, pair, folder, **settings)  # pyright: ignore[reportArgumentType] - as a database
    api = deployment.project.start("run-auth-http")
    client = log_in(deployment.project, api)
    deployment.start(CONSUMER)
    deployment.start(CRON)
    for _, running in deployment.alive.values():
        running.ready()
    posts, load = Posts(client), Load(random.Random(7), every_s=0.1)
    killed: list[float] = []
    outage_s: list[float] = []
    async with database_of(deployment) as db:
        stop = asyncio.Event()
        with posts.running():
            async with asyncio.TaskGroup() as group:
                group.create_task(load.run(db, stop))
                for number in range(times):
                    await asyncio.sleep(FIRST_S)  # the load before it
                    began = time.monotonic()
                    killed.append(await asyncio.to_thread(pair.fail_over))
                    outage_s.append(time.monotonic() - began)
                    deployment.incidents.append(Incident("outage", began, time.monotonic() + AFTER_S, detail="kill"))
                    await asyncio.sleep(AFTER_S)
                    if number < times - 1:
                        await asyncio.to_thread(pair.rejoin)
                        say(f"{number + 1} of {times}: {_back(pair, posts, killed[-1])}")
                stop.set()
    processes = [("run-auth-http", api), *deployment.alive.values()]
    dead = [name for name, process in processes if process.popen.poll() is not None]
    for _, process in processes:
        process.ready()
    back = [_back(pair, posts, moment) for moment in killed]
    await recover(deployment)
    verdict = await asyncio.to_thread(judge, deployment, load)
    kept = {name for (name,) in pair.all("SELECT name FROM auth.roles")}
    verdict.check("acknowledged writes that are lost", [n for n in posts.acknowledged if n not in kept], len(kept))
    verdict.check("acknowledged writes without an audit record", _unaudited(pair, posts), len(posts.acknowledged))
    assert api.stop() == 0
    return Outcome(verdict, posts.answers, back, dead, outage_s)


def _unaudited(pair: Pair, posts: Posts) -> int:
    audited = pair.all("SELECT count(*) FROM kernel.audit WHERE action = 'auth.create_role'")
    return max(0, len(posts.acknowledged) - audited[0][0])


def _back(pair: Pair, posts: Posts, killed_at: float) -> dict[str, float]:
    """Return the seconds from a kill to the first success: of a request, of jobs, of a tick."""
    writes = (answered - killed_at for asked, answered in posts.answered if asked > killed_at)
    found = {"write": min(writes, default=float("inf"))}
    sql = "SELECT min(at) FROM chaos.effects WHERE kind = %s AND at > to_timestamp(%s)"
    for what, task in (("job", PLAIN.name), ("tx job", TX.name), ("tick", TICK.name)):
        first: datetime | None = pair.all(sql, task, killed_at)[0][0]
        found[what] = first.timestamp() - killed_at if first else float("inf")
    return {what: round(seconds, 2) for what, seconds in found.items()}
