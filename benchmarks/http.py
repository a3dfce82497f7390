"""CPU time of `GET /auth/v1/me`, against FastAPI doing the same (see peer_fastapi.py), and a bare route.

`python -m benchmarks.http [rounds [requests]]`
"""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx
import jwt
import psycopg
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.kernel.identifiers import uuid7
from app.modules.auth.keyring import Sealer
from benchmarks.measure import PYTHON, Broken, Table, cpu_s, free_port, postgres, project, scratch, stop, wait_ready
from benchmarks.peer_fastapi import SCHEMA
from tests.conftest import SUPERUSER, PostgresServer
from tests.support.project import ROOT, Project

CONNECTIONS = 12
OURS, SQLMODEL, ASYNC = "ours", "FastAPI + SQLModel", "FastAPI + async SQLAlchemy"
FIRST_USE = "ours, every token for the first time"
BARE = "bare Starlette on Hypercorn"
SECRET = secrets.token_hex()


@dataclass
class Server:
    """One that is measured: a single process with a token for it."""

    pid: int
    port: int
    token: str
    mint: Callable[[], str] | None = None
    cpu_us: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)

    def request(self, token: str | None) -> bytes:
        """Return a request as it is sent."""
        bearer = f"Authorization: Bearer {token or self.token}"
        lines = ["GET /auth/v1/me HTTP/1.1", f"Host: 127.0.0.1:{self.port}", bearer]
        return "\r\n".join([*lines, "Accept: */*", "\r\n"]).encode()

    def answer(self) -> dict[str, Any]:
        """Return what it answers."""
        url = f"http://127.0.0.1:{self.port}/auth/v1/me"
        return httpx.get(url, headers={"Authorization": f"Bearer {self.token}"}).json()

    def round(self, requests: int) -> None:
        """Load it, and note CPU time a request and requests a second."""
        prepared = [self.request(self.mint and self.mint()) for _ in range(requests)]
        cpu_before_s, started = cpu_s(self.pid), time.perf_counter()
        uvloop.run(load(self.port, prepared))
        self.cpu_us.append((cpu_s(self.pid) - cpu_before_s) / requests * 1e6)
        self.per_s.append(requests / (time.perf_counter() - started))


async def load(port: int, requests: list[bytes]) -> None:
    """Send requests over kept connections, one at a time on each. Raises Broken unless all are answered as expected."""
    left = iter(requests)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in left:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            if not head.startswith(b"HTTP/1.1 200 ") or json.loads(body)["actor"]["username"] != SUPERUSER[0]:
                raise Broken(f"unexpected: {head.decode()}{body.decode()}")
        writer.close()

    async with asyncio.timeout(300):
        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))


def log_in(of: Project, port: int) -> dict[str, str]:
    """Make the account; return a session of it."""
    username, password = SUPERUSER
    made = of.app("auth", "create-superuser", "--username", username, "--password-stdin", stdin=password)
    if made.returncode != 0:
        raise Broken(made.stderr)
    login = {"username": username, "password": password}
    answer = httpx.post(f"http://127.0.0.1:{port}/auth/v1/login", json=login)
    return answer.raise_for_status().json()["session"]


def minting(conninfo: str, token: str) -> Callable[..., str]:
    """Return what signs further tokens like one that the server issued, without costing the server anything."""
    header, claims = jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})
    with psycopg.connect(conninfo) as connection:
        stored = connection.execute("SELECT private_key FROM auth.signing_keys WHERE kid = %s", (header["kid"],))
        (sealed,) = stored.fetchone() or (b"",)
    pem = Sealer([SECRET], "signing keys").open(sealed, header["kid"])

    def mint(**changes: str) -> str:
        return jwt.encode(claims | {"jti": str(uuid7())} | changes, pem, algorithm="ES256", headers=header)

    return mint


@contextmanager
def servers(of: Project, database: PostgresServer) -> Generator[dict[str, Server]]:
    """Start ours and both peers, on the same server and with the same content."""
    of.env |= {"AUTH_ACCESS_TOKEN_TTL": "1d", "AUTH_MASTER_SECRET": SECRET}
    port = free_port()
    ours = of.start("run-auth-http", "--port", str(port))
    wait_ready(ours.popen, port)
    token = log_in(of, port)["access_token"]
    started = {
        OURS: Server(ours.pid, port, token),
        FIRST_USE: Server(ours.pid, port, token, minting(database.conninfo(), token)),
    }
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        connection.execute(SCHEMA)
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    claims = jwt.decode(token, options={"verify_signature": False}) | {"iss": "peer", "exp": time.time() + 86400}
    dsn = f"postgresql+psycopg://{database.user}@/app?host={database.host}&port={database.port}"
    env = {"PEER_DSN": dsn, "PEER_KEY": public, "PEER_LOG": str(of.scratch / "peer.log")}
    peers: list[subprocess.Popen[bytes]] = []
    port, bare = free_port(), {"BENCH_ME": json.dumps(started[OURS].answer())}
    try:
        popen = subprocess.Popen(
            [PYTHON, "-m", "benchmarks.served", "bare", str(port)], cwd=ROOT, env=os.environ | bare
        )
        peers.append(popen)
        wait_ready(popen, port, "/hello")
        started[BARE] = Server(popen.pid, port, token)
        for name, factory in ((SQLMODEL, "sqlmodel"), (ASYNC, "asynchronous")):
            port = free_port()
            command = [sys.executable, "-m", "uvicorn", f"benchmarks.peer_fastapi:{factory}", "--factory"]
            command += ["--loop=uvloop", "--http=httptools", "--no-access-log", f"--port={port}"]
            popen = subprocess.Popen([*command, "--log-level=warning"], cwd=ROOT, env=os.environ | env)
            peers.append(popen)
            wait_ready(popen, port, "/openapi.json")
            started[name] = Server(popen.pid, port, jwt.encode(claims, key, algorithm="ES256"))
        yield started
    finally:
        for popen in peers:
            stop(popen)


def main() -> None:
    given = [int(text) for text in sys.argv[1:]]
    rounds, requests = given + [7, 2000][len(given) :]
    with (
        scratch() as folder,
        postgres(folder / "pg") as database,
        project(folder, database) as of,
        servers(of, database) as found,
    ):
        said = {name: server.answer() | {"session_id": ""} for name, server in found.items()}
        if any(answer != said[OURS] for answer in said.values()):
            raise Broken(f"the answers differ: {said}")
        for server in found.values():
            server.round(requests // 2)  # warm
            server.cpu_us.clear()
            server.per_s.clear()
        for number in range(rounds):
            for server in list(found.values())[:: 1 if number % 2 == 0 else -1]:
                server.round(requests)
    table = Table(f"`GET /auth/v1/me`, medians of {rounds} interleaved rounds of {requests} requests")
    for name, server in found.items():
        table.add(f"{name}: CPU a request", median(server.cpu_us), " us")
        table.add(f"{name}: requests a second", median(server.per_s), "")
    for name, least in ((SQLMODEL, 9.0), (ASYNC, 5.5)):
        for mine, asked in ((OURS, least), (FIRST_USE, None)):
            ratios = [theirs / ours for theirs, ours in zip(found[name].cpu_us, found[mine].cpu_us, strict=True)]
            table.add(f"CPU of {name} / {mine}", median(ratios), "x", least=asked)
            table.add("the lowest of a round", min(ratios), "x")
        faster = [ours / theirs for theirs, ours in zip(found[name].per_s, found[OURS].per_s, strict=True)]
        table.add(f"requests a second of ours / {name}", median(faster), "x")
    ratios = [ours / bare for ours, bare in zip(found[OURS].cpu_us, found[BARE].cpu_us, strict=True)]
    table.add(f"CPU of ours / {BARE}", median(ratios), "x", most=1.6)
    table.show()


if __name__ == "__main__":
    main()
