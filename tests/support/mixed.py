"""A mixed load on all processes: requests, sign-ins, jobs, events, ticks, retries, cancellations, commands."""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.kernel.config import load
from app.kernel.db import Database
from app.kernel.db.postgres import database as provider
from app.kernel.process import Process
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport.postgres import PostgresEvents
from app.processes import sections
from tests.chaos import load as chaos
from tests.chaos.module.jobs import FLAKY, PLAIN, Work
from tests.conftest import SUPERUSER
from tests.support.outages import Fleet
from tests.support.project import Project

COMMANDS = (
    ("jobs", "list", "--json"),
    ("queues", "list", "--json"),
    ("migrate", "up"),
    ("schedules", "list", "--json"),
    ("migrate", "status", "--json"),
    ("errors", "list", "--json"),
    ("doctor", "--only", "postgresql"),
)
_DRAINED_S = 60.0
_MANY = 1500  # copied, not inserted
_EXPECTED = ("chaos.flaky", "no handler of this release uses the queue apart")


@dataclass
class MixedLoad:
    """What was done and how it ended: `wrong` is every answer, exit status or log line that is not as it should be."""

    fleet: Fleet
    project: Project
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    flaky: int = 0
    jobs: chaos.Load = field(default_factory=lambda: chaos.Load(random.Random(7), 0.15))

    def run(self, seconds: float) -> "MixedLoad":
        """Load everything for so long, then wait until all jobs are done, and judge."""
        commands = threading.Thread(target=self._commands, args=(time.monotonic() + seconds,))
        commands.start()
        asyncio.run(self._load(seconds))
        commands.join()
        left = """
            SELECT queue, task, state, attempt, count(*) FROM kernel.jobs
            WHERE task LIKE 'chaos.%' AND task <> 'chaos.tick' GROUP BY 1, 2, 3, 4
        """

        deadline = time.monotonic() + _DRAINED_S
        while (found := self.fleet.execute(left)) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.wrong += [f"left in the queue: {job}" for job in found]
        self._judge()
        return self

    async def _load(self, seconds: float) -> None:
        settings = load(self.project.root, sections(), {"APP_ENV": "test", **self.project.env})
        stop = asyncio.Event()
        every: list[tuple[float, Callable[[httpx.AsyncClient, Database], Coroutine[Any, Any, None]]]] = [
            (0.05, self._read),
            (0.3, self._write),
            (2.0, self._sign_in_and_out),
            (0.7, self._cancel_and_retry),
            (1.0, self._trigger),
            (1.0, self._fail_once),
        ]
        async with Process("load", settings, self.project.root).opened() as p, httpx.AsyncClient(timeout=30) as client:
            db = await p.use(provider)
            await Queue(PostgresEvents()).enqueue_many(db, PLAIN, (Work(-number) for number in range(1, _MANY + 1)))
            async with asyncio.TaskGroup() as group:
                group.create_task(self.jobs.run(db, stop))
                for every_s, work in every:
                    group.create_task(self._repeat(every_s, lambda work=work: work(client, db), stop))
                await asyncio.sleep(seconds)
                stop.set()

    async def _repeat(self, every_s: float, work: Callable[[], Coroutine[Any, Any, None]], stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - is what is looked for
                self.wrong.append(repr(error)[:500])
            await asyncio.sleep(every_s)

    async def _ask(
        self, client: httpx.AsyncClient, process: str, method: str, path: str, *, status: int = 200, **body: object
    ) -> httpx.Response:
        started = time.monotonic()
        headers = {"Authorization": self.fleet.token}
        answer = await client.request(method, self.fleet.url(process) + path, json=body or None, headers=headers)
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        self.done[f"{method} {path.partition('?')[0] if len(path) < 40 else path[:20]}"] += 1
        if answer.status_code != status:
            self.wrong.append(f"{process} {method} {path}: {answer.status_code} {answer.text[:200]}")
        return answer

    async def _read(self, client: httpx.AsyncClient, _: Database) -> None:
        for process in ("run-auth-http", "run-all-in-one"):
            await self._ask(client, process, "GET", "/auth/v1/me")
            await self._ask(client, process, "GET", "/auth/v1/actors?limit=5")
        for path in ("queues", "jobs", "schedules", "events", "processes", "audit"):
            await self._ask(client, "run-platform-http", "GET", f"/platform/v1/{path}?limit=5")
        for process in self.fleet.running:
            await self._ask(client, process, "GET", "/ready")

    async def _write(self, client: httpx.AsyncClient, _: Database) -> None:
        name = f"r-{self.done['POST /auth/v1/roles']}"
        role = await self._ask(client, "run-auth-http", "POST", "/auth/v1/roles", status=201, name=name)
        where = f"/auth/v1/roles/{role.json()['id']}/permissions"
        await self._ask(client, "run-all-in-one", "PUT", where, permissions=["platform:queues:read"])

    async def _sign_in_and_out(self, client: httpx.AsyncClient, _: Database) -> None:
        username, password = SUPERUSER
        signed_in = await self._ask(
            client, "run-auth-http", "POST", "/auth/v1/login", username=username, password=password
        )
        given = {"refresh_token": signed_in.json()["session"]["refresh_token"]}
        refreshed = await self._ask(client, "run-all-in-one", "POST", "/auth/v1/refresh", **given)
        headers = {"Authorization": f"Bearer {refreshed.json()['access_token']}"}
        out = await client.post(self.fleet.url("run-auth-http") + "/auth/v1/logout", headers=headers)
        self.done["POST /auth/v1/logout"] += 1
        if out.status_code != 204:
            self.wrong.append(f"logout: {out.status_code} {out.text}")

    async def _cancel_and_retry(self, client: httpx.AsyncClient, db: Database) -> None:
        queue = Queue(PostgresEvents())
        async with db.begin() as tx:
            cancelled = await queue.enqueue(tx, PLAIN, Work(0), delay_s=600)
            hastened = await queue.enqueue(tx, PLAIN, Work(0), delay_s=600)
        await self._ask(client, "run-platform-http", "POST", f"/platform/v1/jobs/{cancelled}/cancel")
        await self._ask(client, "run-all-in-one", "POST", f"/platform/v1/jobs/{hastened}/retry")

    async def _trigger(self, client: httpx.AsyncClient, _: Database) -> None:
        await self._ask(client, "run-platform-http", "POST", "/platform/v1/schedules/platform.heartbeat/trigger")

    async def _fail_once(self, _: httpx.AsyncClient, db: Database) -> None:
        self.flaky += 1
        await Queue(PostgresEvents()).enqueue(db, FLAKY, Work(self.flaky))

    def _commands(self, until: float) -> None:
        while time.monotonic() < until:
            for command in COMMANDS:
                ended = self.project.app(*command)
                self.done["app " + " ".join(command[:2])] += 1
                if ended.returncode != 0:
                    self.wrong.append(f"app {' '.join(command)}: {ended.returncode} {ended.stderr}")
                time.sleep(0.5)

    def _judge(self) -> None:
        """Compare effects with what was enqueued, and look for complaints in the logs."""
        for kind, confirmed in self.jobs.confirmed.items():
            rows = self.fleet.execute(f"SELECT key, number FROM chaos.effects WHERE kind = '{kind}' AND number > 0")
            effects = Counter(rows)
            self.done[kind] = len(confirmed)
            if effects != Counter(confirmed):
                self.wrong.append(f"{kind}: {len(confirmed)} enqueued, {len(rows)} effects of {len(effects)} jobs")
        twice = self.fleet.execute("SELECT count(*) FROM chaos.effects WHERE kind = 'chaos.flaky'")
        copied = self.fleet.execute("SELECT count(*) FROM chaos.effects WHERE kind = 'chaos.plain' AND number < 0")
        [(ticks,)] = self.fleet.execute("SELECT count(*) FROM chaos.effects WHERE kind = 'chaos.tick'")
        self.done |= Counter({"retries": self.flaky, "copied jobs": copied[0][0], "ticks": ticks})
        if (twice, copied) != ([(2 * self.flaky,)], [(_MANY,)]):
            self.wrong.append(f"{self.flaky} flaky jobs ran {twice} times; {copied} copied jobs ran")
        dead = self.fleet.execute("SELECT task, reason FROM kernel.dead_letters")
        self.wrong += [f"dead letter: {letter}" for letter in dead]
        for name, process in self.fleet.running.items():
            for line in process.logs():
                loud = line["level"] in ("warning", "error", "critical")
                if loud and not any(text in str(line) for text in _EXPECTED):
                    self.wrong.append(f"{name}: {line['level']} {line['message'][:300]}")
