"""A fleet on one machine, with everything that docs/scaling.md names before step 5; each kind is killed under load."""

import asyncio
import random
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import nats
import nats.errors

from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport.nats.outbox import OutboxEvents
from tests.chaos.deployment import CONSUMER, CRON, Deployment, Incident
from tests.chaos.harness import recover
from tests.chaos.load import Load, database_of
from tests.chaos.module.jobs import PLAIN, TICK, TX
from tests.chaos.verdict import Rows, Verdict, judge
from tests.conftest import log_in, postgres_binaries
from tests.kernel.http.test_rolling import LATE_S, Sent
from tests.kernel.http.test_rolling import Load as Clients
from tests.support.debian import free_port, with_standby
from tests.support.failover import Pair
from tests.support.namespaces import Namespace, namespaces
from tests.support.nats import NatsServer, nats_cluster
from tests.support.pgbouncer import PgBouncer, pgbouncer
from tests.support.project import Project, Running, eventually
from tests.support.proxies import Proxied, proxied
from tests.support.valkey import Valkey, sentinel, servers

STREAM = "fleet-events"
DOWN_S = 1.0  # until what was killed is started again
CLOSED_S = 0.5  # after a reload, until nginx has closed idle connections
DELIVERED_S = 120.0  # an event of a killed worker is delivered again after its lease
GOES_ON_S = 60.0
APIS = {"auth": 3, "platform": 2}


@dataclass
class PooledPair(Pair):
    """A primary and its standby, each behind a PgBouncer."""

    poolers: list[PgBouncer] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        pooled = ",".join(f"127.0.0.1:{pooler.port}" for pooler in self.poolers)
        return {**super().env, "POSTGRES_HOST": pooled, "POSTGRES_DIRECT_HOST": super().env["POSTGRES_HOST"]}


@dataclass
class Done:
    """What was done to the fleet, from when, until all was back, and until it had settled; of time.monotonic()."""

    kind: str
    began: float
    at: float
    """The same moment of time.time()."""
    back: float = float("inf")
    ended: float = float("inf")
    gone: float = float("inf")
    """When a killed process had ended: on a busy machine, its sockets outlive SIGKILL."""


@dataclass
class Fleet:
    """All servers and processes; the first of `caches` is the primary."""

    deployment: Deployment
    pair: PooledPair
    caches: list[Valkey]
    sentinel: Valkey
    nodes: list[NatsServer]
    partition_s: float
    token: str = ""
    proxy: Proxied | None = None
    apis: dict[tuple[str, int], Running] = field(default_factory=dict)
    ports: dict[str, tuple[int, ...]] = field(default_factory=dict)
    done: list[Done] = field(default_factory=list)

    def start_api(self, role: str, number: int) -> Running:
        port = str(self.ports[role][number])
        self.apis[role, number] = self.deployment.project.start(f"run-{role}-http", "--port", port)
        return self.apis[role, number]

    # what is done to it

    def kill_api(self, role: str) -> None:
        number = random.randrange(len(self.ports[role]))
        self.apis[role, number].signal(signal.SIGKILL)
        self.apis[role, number].wait()
        self.done[-1].gone = time.monotonic()
        self.start_api(role, number).ready()

    def kill_worker(self, command: str) -> None:
        found = self.deployment.workers() if command == CONSUMER else self.deployment.pids(command)
        self.deployment.kill(random.choice(found))
        for pid in self.deployment.pids(command):
            self.deployment.alive[pid][1].ready()

    def kill_cache(self) -> None:
        """Kill the primary of Valkey; its replica takes over, and it comes back as the replica."""
        self.caches[0].kill()
        self.caches.reverse()
        eventually(lambda: "master" in str(self.caches[0].ask("ROLE")))
        self.caches[1].options = ["--replicaof", f"127.0.0.1 {self.caches[0].port}"]
        self.caches[1].start()

    def kill_sentinel(self) -> None:
        self.sentinel.kill()
        time.sleep(DOWN_S)
        self.sentinel.start()

    def kill_node(self) -> None:
        node = random.choice(self.nodes)
        node.stop()
        time.sleep(DOWN_S)
        node.start()

    def cut_off_leader(self) -> None:
        """Cut the leader of the stream off from the other servers, but from no process, until they elect another."""
        leader = eventually(lambda: asyncio.run(_leader(self.nodes)))
        others = [node for node in self.nodes if node is not leader]
        with self._cut_off(leader):
            deadline = time.monotonic() + self.partition_s
            eventually(lambda: asyncio.run(_leader(others)) not in (None, leader))
            time.sleep(max(0, deadline - time.monotonic()))

    @contextmanager
    def _cut_off(self, node: NatsServer) -> Iterator[None]:
        if node.place is not None:
            with node.place.cut_off([other.place for other in self.nodes if other.place not in (None, node.place)]):
                yield
            return
        assert node.process is not None  # no namespaces here: it stands still instead
        node.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            node.process.send_signal(signal.SIGCONT)

    def kill_pooler(self) -> None:
        pooler = next(pooler for pooler in self.pair.poolers if pooler.server is self.pair.servers[0])
        pooler.end(signal.SIGKILL)
        time.sleep(DOWN_S)
        pooler.start()

    def reload_proxy(self) -> None:
        assert self.proxy is not None
        assert self.proxy.process is not None
        self.proxy.process.send_signal(signal.SIGHUP)

    def kill_proxy(self) -> None:
        assert self.proxy is not None
        self.proxy.kill()
        time.sleep(DOWN_S)
        self.proxy.start()
        eventually(self._is_served)

    def _is_served(self) -> bool:
        assert self.proxy is not None
        with suppress(httpx.HTTPError):
            return self.proxy.get("/auth/v1/me").status_code == 401
        return False

    def kill_standby(self) -> None:
        """Kill the standby that each commit waits for."""
        self._complete()
        self.pair.servers[1].kill()
        time.sleep(DOWN_S)
        self.pair.servers[1].start()

    def fail_over(self) -> None:
        self._complete()
        self.pair.fail_over()

    def _complete(self) -> None:
        """Let the primary that was lost before come back as the standby; what is done begins only then."""
        if self.pair.servers[1].process is None:
            self.pair.rejoin()
            self.done[-1].began, self.done[-1].at = time.monotonic(), time.time()


async def _leader(nodes: Sequence[NatsServer]) -> NatsServer | None:
    """Return which one leads the stream, as some servers say; None when they cannot tell."""
    with suppress(nats.errors.Error, TimeoutError):
        client = await nats.connect([node.url for node in nodes])
        try:
            found = (await client.jetstream().stream_info(STREAM)).cluster
        finally:
            await client.close()
        if found is not None and found.leader:
            return next((node for node in nodes if node.name == found.leader), None)
    return None


KINDS: dict[str, Callable[[Fleet], None]] = {
    "auth": lambda fleet: fleet.kill_api("auth"),
    "platform": lambda fleet: fleet.kill_api("platform"),
    "consumer": lambda fleet: fleet.kill_worker(CONSUMER),
    "cron": lambda fleet: fleet.kill_worker(CRON),
    "valkey": Fleet.kill_cache,
    "sentinel": Fleet.kill_sentinel,
    "nats": Fleet.kill_node,
    "partition": Fleet.cut_off_leader,
    "pgbouncer": Fleet.kill_pooler,
    "nginx": Fleet.kill_proxy,
    "nginx reload": Fleet.reload_proxy,
    "standby": Fleet.kill_standby,
    "primary": Fleet.fail_over,
}
OUTAGES = {"nats", "partition", "pgbouncer", "standby", "primary"}
"""What may make a job run again that no killed worker had."""
ALLOWED: dict[str, Callable[[Sent, Done], bool]] = {
    # what the killed process was doing, and nothing else; nginx repeats a GET with another one
    **dict.fromkeys(
        ("auth", "platform"),
        lambda sent, done: sent.outcome == "502" and sent.method == "POST" and sent.begun - LATE_S < done.gone,
    ),
    # with Retry-After
    **dict.fromkeys(("pgbouncer", "standby", "primary"), lambda sent, _: sent.outcome == "503"),
    # nobody listens, until it runs again
    "nginx": lambda sent, done: not sent.outcome[0].isdigit() and sent.begun < done.back,
    # nginx closes idle connections, on which a request may be on its way
    "nginx reload": lambda sent, done: not sent.outcome[0].isdigit() and sent.begun < done.began + CLOSED_S,
}
"""The answers besides 200 and 201 that documents allow, each from its beginning until the fleet has settled."""


@contextmanager
def fleet_of(project: Project, folder: Path, *, partition_s: float, consumers: int = 4) -> Iterator[Fleet]:
    """Start everything but nginx, which needs APIs that serve."""
    with ExitStack() as stack:
        pair = PooledPair(list(stack.enter_context(with_standby(postgres_binaries()))))
        pair.synchronise()
        pair.poolers += [stack.enter_context(pgbouncer(server)) for server in pair.servers]
        started = stack.enter_context(servers())
        started.append(Valkey(folder / "valkey-0"))
        started.append(Valkey(folder / "valkey-1", ["--replicaof", f"127.0.0.1 {started[0].port}"]))
        started.append(sentinel(folder / "sentinel", started[0]))
        places: list[Namespace] = []
        with suppress(OSError, subprocess.CalledProcessError):
            places = stack.enter_context(namespaces(3))
        nodes = stack.enter_context(nats_cluster(folder / "nats", places=places))
        settings = {
            "REDIS_URL": f"redis+sentinel://127.0.0.1:{started[-1].port}/main",
            "NATS_URL": ",".join(node.url for node in nodes),
            "NATS_REPLICAS": len(nodes),
            "NATS_STREAM": STREAM,
            "QUEUE_EVENTS_TRANSPORT": "nats",
            "PROCESS_DRAIN_DELAY": "0s",
            "AUTH_ACCESS_TOKEN_TTL": "2h",
            "HTTP_SERVER_TRUSTED_PROXIES": "127.0.0.1",
        }
        deployment = Deployment.of(project, pair, folder, **settings)  # pyright: ignore[reportArgumentType] - as a database
        fleet = Fleet(deployment, pair, started[:2], started[2], nodes, partition_s)
        fleet.ports = {role: tuple(free_port() for _ in range(count)) for role, count in APIS.items()}
        deployment.start(CONSUMER).ready(90)  # migrates
        for role, count in APIS.items():
            for number in range(count):
                fleet.start_api(role, number)
        for command in [CONSUMER] * (consumers - 1) + [CRON] * 2:
            deployment.start(command)
        for running in [*fleet.apis.values(), *(running for _, running in deployment.alive.values())]:
            running.ready(90)
        client = log_in(deployment.project, fleet.apis["auth", 0])
        (folder / "proxy").mkdir()
        with proxied("nginx", folder / "proxy", fleet.ports) as fleet.proxy:
            fleet.token = client.headers["Authorization"].removeprefix("Bearer ")
            yield fleet


@dataclass
class Outcome:
    """The verdict, answers by method and status, and seconds from an incident to the first success of each kind."""

    verdict: Verdict
    answers: Counter[tuple[str, str]]
    back_s: dict[str, list[dict[str, float]]]


async def unleash(fleet: Fleet, kinds: Iterator[str], settle_s: float, say: Callable[[str], None] = print) -> Outcome:
    """Do one after the other under load, then let everything recover, and count."""
    deployment = fleet.deployment
    assert fleet.proxy is not None
    say(f"NATS servers are parted by {'network namespaces' if fleet.nodes[0].place else 'SIGSTOP'}")
    load = Load(random.Random(7), every_s=0.1, queue=Queue(OutboxEvents()))
    async with database_of(deployment) as db:
        stop = asyncio.Event()
        with Clients(fleet.proxy, fleet.token) as clients:
            async with asyncio.TaskGroup() as group:
                group.create_task(load.run(db, stop))
                await asyncio.sleep(settle_s)
                for kind in kinds:
                    fleet.done.append(done := Done(kind, time.monotonic(), time.time()))
                    await asyncio.to_thread(KINDS[kind], fleet)
                    done.back = time.monotonic()
                    await asyncio.sleep(settle_s)
                    done.ended = time.monotonic()
                    if kind in OUTAGES:
                        deployment.incidents.append(Incident("outage", done.began, done.ended, detail=kind))
                    failed = Counter(s.outcome for s in clients.sent if s.failed and s.ended > done.began)
                    say(f"{kind}: {done.back - done.began:.1f} s until all was back; {dict(failed) or 'no error'}")
                await _goes_on(fleet, clients.sent)
                stop.set()
    began = time.monotonic()
    await _delivered(fleet)
    await recover(deployment)
    say(f"recovered after {time.monotonic() - began:.1f} s")
    verdict = await asyncio.to_thread(judge, deployment, load)
    await asyncio.to_thread(requests, verdict, fleet.pair, fleet.done, clients.sent)
    ends = [(role, await asyncio.to_thread(api.stop)) for (role, _), api in fleet.apis.items()]
    verdict.check("APIs that did not end with 0 after SIGTERM", [end for end in ends if end[1]], len(ends))
    back_s: dict[str, list[dict[str, float]]] = defaultdict(list)
    for done in fleet.done:
        back_s[done.kind].append(seconds := _back(fleet, clients.sent, done))
        verdict.check(f"did not go on after {done.kind}", [what for what, s in seconds.items() if s == float("inf")])
    return Outcome(verdict, Counter((sent.method, sent.outcome) for sent in clients.sent), dict(back_s))


async def _goes_on(fleet: Fleet, sent: list[Sent]) -> None:
    """Keep the load up until everything has succeeded after the last incident, too; the verdict finds what has not."""
    with suppress(TimeoutError):
        async with asyncio.timeout(GOES_ON_S):
            while float("inf") in (await asyncio.to_thread(_back, fleet, sent, fleet.done[-1])).values():
                await asyncio.sleep(0.2)


async def _delivered(fleet: Fleet) -> None:
    """Wait until the outbox and the stream are empty; what is not delivered then, the verdict finds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DELIVERED_S), await nats.connect([node.url for node in fleet.nodes]) as client:
            while True:
                waiting = fleet.pair.all("SELECT count(*) FROM kernel.event_outbox")[0][0]
                with suppress(nats.errors.Error):
                    if not waiting + (await client.jetstream().stream_info(STREAM)).state.messages:
                        return
                fleet.deployment.replace_ended()
                await asyncio.sleep(0.2)


def requests(verdict: Verdict, database: Rows, incidents: Sequence[Done], sent: Sequence[Sent]) -> None:
    """Count what was asked over HTTP: answers, and what they wrote."""
    posts = {each.id: each for each in sent if each.method == "POST"}
    answered = {name for name, each in posts.items() if not each.failed}
    roles = Counter(name for (name,) in database.all("SELECT name FROM auth.roles"))
    audited = Counter(request for (request,) in database.all("SELECT request_id FROM kernel.audit"))
    wanted = {name for name in answered if posts[name].path.endswith("/roles")}
    verdict.check("POST: acknowledged roles that are lost", sorted(wanted - roles.keys()), len(wanted))
    verdict.check("POST: acknowledged without an audit record", sorted(answered - audited.keys()), len(answered))
    verdict.check("POST: written twice", [name for name in posts if audited[name] > 1], len(posts))
    strange = [
        (
            each.method,
            each.path,
            each.outcome,
            [f"{each.begun - done.began:.2f} s after {done.kind}" for done in incidents if _during(each, done)],
        )
        for each in sent
        if each.failed
        and not any(
            done.kind in ALLOWED and _during(each, done) and ALLOWED[done.kind](each, done) for done in incidents
        )
    ]
    verdict.check("answers that are not documented", strange, len(sent))


def _during(sent: Sent, done: Done) -> bool:
    return sent.ended > done.began and sent.begun < done.ended


def _back(fleet: Fleet, sent: list[Sent], done: Done) -> dict[str, float]:
    """Return the seconds to the first success of a kind that began later."""
    found = {
        what: min((s.ended for s in sent if s.method == method and not s.failed and s.begun > done.began), default=None)
        for what, method in (("GET", "GET"), ("POST", "POST"))
    }
    seconds = {what: moment - done.began if moment else float("inf") for what, moment in found.items()}
    sql = "SELECT extract(epoch FROM min(at))::float8 FROM chaos.effects WHERE kind = %s AND at > to_timestamp(%s)"
    for what, kind in (("job", PLAIN.name), ("tx job", TX.name), ("event", "chaos.told"), ("tick", TICK.name)):
        first: float | None = fleet.pair.all(sql, kind, done.at)[0][0]
        seconds[what] = first - done.at if first else float("inf")
    return {what: round(value, 2) for what, value in seconds.items()}
