"""What a sign-in tells by its time, costs beyond argon2, and disturbs. `GET /me` among a million sessions. Revocation.

`python -m benchmarks.auth [tries]`
"""

import json
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from statistics import median, quantiles

import psycopg
from argon2 import PasswordHasher

from app.kernel.identifiers import uuid7
from app.modules.auth.domain.limits import LOCKED_FROM, limit_of_name
from benchmarks.http import SECRET, log_in, minting
from benchmarks.measure import Broken, Table, free_port, postgres, project, scratch, wait_ready
from tests.conftest import SUPERUSER, TestDatabase, create_database
from tests.support.project import Project

NAME, PASSWORD = SUPERUSER
SESSIONS, ACTORS, SIGNED_IN = 1_000_000, 100_000, 500
PARALLEL, REVOKED = 100, 500
REQUESTS = 4000

ACCOUNTS = """
    INSERT INTO auth.actors (id, type, username, username_key, password_hash, is_active)
    SELECT gen_random_uuid(), 'user', made.name, made.name, password_hash, made.name <> 'disabled'
    FROM auth.actors, (VALUES ('disabled'), ('locked')) AS made (name) WHERE username_key = 'root'
"""
CROWD = f"""
    INSERT INTO auth.actors (id, type, username, username_key, last_active_at)
    SELECT gen_random_uuid(), 'user', 'user' || n, 'user' || n, now() FROM generate_series(1, {ACTORS - 1}) n;
    INSERT INTO auth.actor_permissions (actor_id, permission)
    SELECT id, permission FROM auth.actors, (VALUES ('auth:actors:read'), ('auth:roles:read')) AS made (permission);
    INSERT INTO auth.sessions (id, actor_id, idle_expires_at, expires_at)
    SELECT gen_random_uuid(), a.id, now() + interval '1 day', now() + interval '30 days'
    FROM (SELECT id, row_number() OVER () AS n FROM auth.actors) a
    JOIN generate_series(1, {SESSIONS}) s ON a.n = s % {ACTORS} + 1
"""
SOME = f"""
    SELECT s.id, a.id, a.username_key
    FROM auth.sessions s TABLESAMPLE bernoulli ({300 * SIGNED_IN / SESSIONS}) JOIN auth.actors a ON a.id = s.actor_id
    LIMIT {SIGNED_IN}
"""
SESSION = """
    INSERT INTO auth.sessions (id, actor_id, idle_expires_at, expires_at)
    SELECT %s, id, now() + interval '1 hour', now() + interval '1 hour' FROM auth.actors WHERE username_key = %s
"""
ACTIVE = "UPDATE auth.actors SET last_active_at = now() WHERE username_key = ANY(%s)"
WRONG = {
    "unknown name": ("nobody", PASSWORD),
    "wrong password": (NAME, "not the password of it"),
    "disabled account": ("disabled", PASSWORD),
    "locked account": ("locked", PASSWORD),
}


@dataclass(frozen=True)
class Server:
    """A server with a database of its own, and a token of its superuser."""

    port: int
    database: TestDatabase
    token: str


class Connection:
    """A kept connection, on which requests are timed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.status = 0
        self._open()

    def _open(self) -> None:
        self._sock = socket.create_connection(("127.0.0.1", self._port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self._sock.makefile("rb")

    def ms(self, expected: tuple[int, ...], method: str, path: str, body: bytes = b"", bearer: str = "") -> float:
        """Return the milliseconds until the whole answer is there. Raises Broken unless it has one of the statuses."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._port}", f"Authorization: Bearer {bearer}"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "\r\n"]
        request = "\r\n".join(lines).encode() + body
        started = time.perf_counter()
        self._sock.sendall(request)
        self.status = int(self._stream.readline().split()[1])
        fields = dict(line.lower().split(b":", 1) for line in iter(self._stream.readline, b"\r\n"))
        answer = self._stream.read(int(fields.get(b"content-length", 0)))
        took_ms = (time.perf_counter() - started) * 1000
        if self.status not in expected:
            raise Broken(f"{method} {path}: {self.status} {answer.decode()}")
        if b"close" in fields.get(b"connection", b""):  # after a thousand requests
            self._open()
        return took_ms

    def login_ms(self, expected: tuple[int, ...], name: str, password: str) -> float:
        return self.ms(
            expected, "POST", "/auth/v1/login", json.dumps({"username": name, "password": password}).encode()
        )


def percentiles(values: list[float]) -> tuple[float, float]:
    """Return p50 and p99."""
    cuts = quantiles(values, n=100)
    return cuts[49], cuts[98]


def turns(subjects: list[str], rounds: int) -> Iterator[list[str]]:
    """Return the subjects of each round, so that each comes first as often as the others."""
    for number in range(rounds):
        first = number % len(subjects)
        yield subjects[first:] + subjects[:first]


def enumeration(server: Server, tries: int) -> None:
    """Compare how long the refusals of a sign-in take."""
    connection = Connection(server.port)
    found: dict[str, list[float]] = {kind: [] for kind in WRONG}
    with psycopg.connect(server.database.conninfo, autocommit=True) as own:
        own.execute(ACCOUNTS)
        [(locked_id,)] = own.execute("SELECT id FROM auth.actors WHERE username_key = 'locked'").fetchall()
        locked = limit_of_name("locked", locked_id)
        for kinds in turns(list(WRONG), tries):
            # what the limits have counted, they have answered alike; here each try is as good as the first
            own.execute("DELETE FROM auth.limits")
            own.execute("INSERT INTO auth.limits (key, hits) VALUES (%s, %s)", (locked, LOCKED_FROM))
            for kind in kinds:
                found[kind].append(connection.login_ms((401,), *WRONG[kind]))
    table = Table(f"Refused sign-ins, medians of {tries} interleaved tries")
    base, *others = found
    table.add(base, median(found[base]), " ms")
    for kind in others:
        differences = [one - other for one, other in zip(found[kind], found[base], strict=True)]
        table.add(f"{kind} - {base}", median(differences), " ms")
    table.add("the furthest apart of any two medians", spread_ms(found), " ms", most=5)
    table.show()


def spread_ms(found: dict[str, list[float]]) -> float:
    """Return the largest median of the differences, round by round, of any two."""
    pairs = [(one, other) for one in found.values() for other in found.values()]
    return max(median(a - b for a, b in zip(one, other, strict=True)) for one, other in pairs)


def bound(server: Server, tries: int) -> None:
    """Compare signing in with nothing but the hash."""
    connection, hasher = Connection(server.port), PasswordHasher()
    encoded = hasher.hash(PASSWORD)

    def bare() -> float:
        started = time.perf_counter()
        hasher.verify(encoded, PASSWORD)
        return (time.perf_counter() - started) * 1000

    subjects: dict[str, Callable[[], float]] = {
        "bare": bare,
        "login": lambda: connection.login_ms((200,), NAME, PASSWORD),
    }
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for names in turns(list(subjects), tries):
        for name in names:
            found[name].append(subjects[name]())
    table = Table(f"Signing in, medians of {tries} interleaved tries")
    table.add("argon2id alone, with the same parameters", median(found["bare"]), " ms")
    table.add("`POST /auth/v1/login`", median(found["login"]), " ms")
    ratios = [login / alone for login, alone in zip(found["login"], found["bare"], strict=True)]
    table.add("`POST /auth/v1/login` / argon2id alone", median(ratios), "x", most=1.1)
    table.show()


def crowd(empty: Server, full: Server) -> None:
    """Compare `GET /auth/v1/me` of the only actor with that of some among many."""
    with psycopg.connect(full.database.conninfo, autocommit=True) as own:
        own.execute(CROWD)
        own.execute("ANALYZE")
        among_many = own.execute(SOME).fetchall()
    mint, mint_full = (minting(server.database.conninfo, server.token) for server in (empty, full))
    tokens = {
        "empty": [mint() for _ in among_many],
        "full": [mint_full(sid=str(session), sub=str(actor)) for session, actor, _ in among_many],
    }
    connections = {"empty": Connection(empty.port), "full": Connection(full.port)}
    found: dict[str, list[float]] = {"empty": [], "full": []}
    bearers = {name: cycle(random.sample(found_tokens, len(found_tokens))) for name, found_tokens in tokens.items()}
    forgetting = {
        name: psycopg.connect(server.database.conninfo, autocommit=True)
        for name, server in (("empty", empty), ("full", full))
    }
    for number, names in enumerate(turns(list(connections), REQUESTS + SIGNED_IN)):
        if number % SIGNED_IN == 0:  # once a minute a request notes that its actor is active, whatever the database
            empty.database.run(ACTIVE, [NAME])
            full.database.run(ACTIVE, [username for _, _, username in among_many])
        for name in names:
            forgetting[name].execute("NOTIFY kernel_cache")
            took_ms = connections[name].ms((200,), "GET", "/auth/v1/me", bearer=next(bearers[name]))
            if number >= SIGNED_IN:  # by then each token was used once
                found[name].append(took_ms)
    for connection in forgetting.values():
        connection.close()
    table = Table(f"`GET /auth/v1/me` of callers that are not remembered, {REQUESTS} requests each, in turns")
    (p50, p99), (p50_full, p99_full) = percentiles(found["empty"]), percentiles(found["full"])
    table.add("one actor, one session: p50", p50, " ms")
    table.add("one actor, one session: p99", p99, " ms")
    table.add(f"{SIGNED_IN} of {ACTORS:,} actors, {SESSIONS:,} sessions: p50", p50_full, " ms")
    table.add(f"{SIGNED_IN} of {ACTORS:,} actors, {SESSIONS:,} sessions: p99", p99_full, " ms")
    table.add("p50 / p50", p50_full / p50, "x")
    table.add("p99 / p99", p99_full / p99, "x", most=1.5)
    table.show()


def revocation(server: Server, other: int) -> None:
    """End sessions in one process, and ask another that remembers them, in a loop until it refuses."""
    mint, sessions = minting(server.database.conninfo, server.token), [uuid7() for _ in range(REVOKED)]
    with psycopg.connect(server.database.conninfo, autocommit=True) as own:
        own.cursor().executemany(SESSION, [(session, NAME) for session in sessions])
    ending, asking = Connection(server.port), Connection(other)
    delays_ms: list[float] = []
    for token in [mint(sid=str(session)) for session in sessions]:
        for _ in range(2):  # then it is remembered
            asking.ms((200,), "GET", "/auth/v1/me", bearer=token)
        ending.ms((204,), "POST", "/auth/v1/logout", bearer=token)
        ended, delay_ms = time.perf_counter(), 0.0
        while True:
            sent_ms = (time.perf_counter() - ended) * 1000
            asking.ms((200, 401), "GET", "/auth/v1/me", bearer=token)
            if asking.status == 401:
                break
            delay_ms = sent_ms
        delays_ms.append(delay_ms)
    p50, p99 = percentiles(delays_ms)
    table = Table(f"{REVOKED} sessions that one process ends, asked of another that remembers them")
    table.add("refused on the next request", 100 * sum(delay == 0 for delay in delays_ms) / REVOKED, "%")
    table.add("from the end to the last request that was answered: p50", p50, " ms")
    table.add("from the end to the last request that was answered: p99", p99, " ms", most=100)
    table.add("from the end to the last request that was answered: the longest", max(delays_ms), " ms")
    table.show()


def disturbance(server: Server) -> None:
    """Compare `/health` of an idle process with that of one that is flooded with sign-ins."""
    connection = Connection(server.port)
    idle = list(probes(connection, lambda count: count < 500))
    with ThreadPoolExecutor(PARALLEL) as threads:
        waiting = threading.Barrier(PARALLEL + 1)

        def login() -> tuple[float, int]:
            own = Connection(server.port)
            waiting.wait()
            took_ms = own.login_ms((200, 503), NAME, PASSWORD)
            return took_ms, own.status

        logins = [threads.submit(login) for _ in range(PARALLEL)]
        waiting.wait()
        busy = list(probes(connection, lambda _: not all(one.done() for one in logins)))
        answers = [one.result() for one in logins]
    table = Table(f"`/health` beside {PARALLEL} sign-ins at once")
    for title, found in (("idle", idle), (f"during the sign-ins, {len(busy)} probes", busy)):
        p50, p99 = percentiles(found)
        table.add(f"{title}: p50", p50, " ms")
        table.add(f"{title}: p99", p99, " ms")
    table.add("the last sign-in", max(took_ms for took_ms, _ in answers), " ms")
    table.add("answered 503: no turn or database connection in time", sum(status == 503 for _, status in answers), "")
    table.show()


def probes(connection: Connection, goes_on: Callable[[int], bool]) -> Generator[float]:
    """Ask for `/health` every 10 ms, as long as it goes on; return how long each took."""
    count = 0
    while goes_on(count):
        yield connection.ms((200,), "GET", "/health")
        count += 1
        time.sleep(0.01)


def started(of: Project, database: TestDatabase) -> Server:
    """Start a server on an empty database."""
    port = listening(of, database)
    return Server(port, database, log_in(of, port)["access_token"])


def listening(of: Project, database: TestDatabase) -> int:
    """Start a process; return its port."""
    port = free_port()
    of.env |= database.env
    wait_ready(of.start("run-auth-http", "--port", str(port)).popen, port)
    return port


def main() -> None:
    tries = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with scratch() as folder, postgres(folder / "pg") as server, project(folder, server) as of:
        of.env |= {"AUTH_ACCESS_TOKEN_TTL": "1d", "AUTH_MASTER_SECRET": SECRET, "HTTP_SERVER_HANDLE_TIMEOUT": "5m"}
        empty, full = started(of, create_database(server)), started(of, create_database(server))
        revocation(empty, listening(of, empty.database))
        crowd(empty, full)
        enumeration(full, tries)
        bound(full, tries // 4)
        disturbance(full)


if __name__ == "__main__":
    main()
