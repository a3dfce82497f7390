"""NATS in operator mode: a user signs in with a .creds file, and its account has limits (decentralised JWTs)."""

import asyncio
import base64
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import nkeys
import pytest
from loguru import logger

from app.kernel.config import NatsSettings, load
from app.kernel.queue.enqueue import Queue
from app.kernel.queue.transport.nats.connection import Nats
from app.kernel.queue.transport.nats.outbox import OutboxEvents
from app.kernel.queue.transport.nats.stream import Stream
from app.processes import sections
from tests.kernel.queue.conftest import Bench, connected
from tests.kernel.queue.test_nats import TX, Moved, counted
from tests.support.nats import NatsServer, nats_server
from tests.support.project import ROOT

LIMIT_BYTES = 20_000
NO_LIMITS = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1}


class Key:
    """A pair of nkeys. A JWT is signed as nats-server expects it (nats-io/jwt, version 2)."""

    def __init__(self, prefix: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), prefix)
        self.pair = nkeys.from_seed(bytearray(self.seed))
        self.public = self.pair.public_key.decode()

    def signed(self, subject: str, name: str, about: dict[str, Any]) -> str:
        claims = {"iss": self.public, "sub": subject, "name": name, "iat": 1, "nats": {"version": 2, **about}}
        claims["jti"] = base64.b32encode(sha256(json.dumps(claims).encode()).digest()).decode().rstrip("=")
        parts = [_encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims)]
        text = ".".join(parts)
        return f"{text}.{_encoded(self.pair.sign(text.encode()))}"


def _encoded(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


OPERATOR, USER = Key(nkeys.PREFIX_BYTE_OPERATOR), Key(nkeys.PREFIX_BYTE_USER)
ACCOUNT, SYSTEM = Key(nkeys.PREFIX_BYTE_ACCOUNT), Key(nkeys.PREFIX_BYTE_ACCOUNT)


def config(disk_bytes: int) -> str:
    """Return the part of a configuration with the operator and its account."""
    limits = {**NO_LIMITS, "mem_storage": 0, "disk_storage": disk_bytes, "streams": 1, "consumer": 5}
    account = OPERATOR.signed(ACCOUNT.public, "app", {"type": "account", "limits": limits})
    operator = OPERATOR.signed(OPERATOR.public, "operator", {"type": "operator"})
    system = OPERATOR.signed(SYSTEM.public, "system", {"type": "account", "limits": NO_LIMITS})
    preload = f"{{ {ACCOUNT.public}: {account}, {SYSTEM.public}: {system} }}"
    return f"operator: {operator}\nsystem_account: {SYSTEM.public}\nresolver: MEMORY\nresolver_preload: {preload}\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats", config(LIMIT_BYTES)) as started:
        yield started


@pytest.fixture
def credentials(tmp_path: Path) -> Callable[[Key], Path]:
    def made(signed_by: Key) -> Path:
        jwt = signed_by.signed(USER.public, "app", {"type": "user", "subs": -1, "data": -1, "payload": -1})
        file = tmp_path / "app.creds"
        file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{USER.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        return file

    return made


def settings(server: NatsServer, file: Path) -> NatsSettings:
    env = {"NATS_URL": server.url, "NATS_CREDENTIALS": str(file), "NATS_TIMEOUT": "1s"}
    return load(ROOT, sections(), {"APP_ENV": "test", **env})[NatsSettings]


async def test_events_wait_in_the_database_while_the_account_is_full(
    bench: Bench, server: NatsServer, credentials: Callable[[Key], Path]
) -> None:
    said: list[str] = []
    sink = logger.add(lambda line: said.append(str(line)), level="WARNING")
    await bench.db.run("CREATE TABLE heard (steps integer)")
    given = settings(server, credentials(ACCOUNT))
    async with connected(given) as connection:
        short = replace(bench.settings, lease=1.0)
        broker = replace(bench, settings=short, queue=Queue(OutboxEvents()), stream=Stream(connection, given, 1.0))
        await broker.queue.events.subscribe(broker.db, [TX])
        async with broker.consuming([]):
            await broker.queue.publish(broker.db, *(Moved(n) for n in range(200)))

            async def is_refused() -> bool:
                ((left,),) = await broker.rows("SELECT count(*) FROM kernel.event_outbox")
                return 0 < left < 200 and "; raise the limits of the account" in "".join(said)

            await broker.until(is_refused, True)
        server.stop()
        server.config.write_text(server.config.read_text().replace(config(LIMIT_BYTES), config(-1)))
        server.start()
        async with broker.consuming([TX]):
            await broker.until(lambda: counted(broker), [(200, 200)], 30)
    logger.remove(sink)


async def test_a_user_of_another_account_is_refused_and_it_is_said(
    server: NatsServer, credentials: Callable[[Key], Path]
) -> None:
    connection = Nats(settings(server, credentials(Key(nkeys.PREFIX_BYTE_ACCOUNT))))
    running = asyncio.ensure_future(connection.run())
    async with asyncio.timeout(10):
        while not connection.why:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.wait({running})
    assert "authorization violation" in connection.why.lower()
