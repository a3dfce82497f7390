"""Several hosts of one server: the one that accepts writes is found in bounded time, and is tried first afterwards."""

import socket
import time
from dataclasses import replace

import psycopg
import pytest

from app.kernel.config import PostgresSettings, load
from app.kernel.db.server import Server, configured_server
from app.kernel.errors import Unavailable
from app.processes import sections
from tests.conftest import TestDatabase
from tests.support.debian import free_port
from tests.support.project import ROOT


def server_at(database: TestDatabase, *hosts: str) -> Server:
    """Return the server at some hosts, and at the real one after them."""
    settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env})[PostgresSettings]
    return configured_server(replace(settings, host=",".join((*hosts, database.server.host))), "test")


async def test_a_host_that_does_not_answer_takes_its_share_of_the_time_once(database: TestDatabase) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        server = server_at(database, f"127.0.0.1:{mute.getsockname()[1]}")
        started = time.monotonic()
        (await server.open()).drop()
        assert 2 < time.monotonic() - started < 5
        started = time.monotonic()
        (await server.open()).drop()
        assert time.monotonic() - started < 2
        started = time.monotonic()
        psycopg.connect(server.conninfo(), autocommit=True).close()  # of a thread, or of a migration
        assert time.monotonic() - started < 2


async def test_without_a_host_that_accepts_writes_the_reason_is_that_of_one_that_answers(
    database: TestDatabase,
) -> None:
    server = server_at(database, f"127.0.0.1:{free_port()}")
    (await server.open()).drop()
    with psycopg.connect(database.server.conninfo(), autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    with pytest.raises(Unavailable, match="the database is read-only"):
        await server.open()
    with pytest.raises(psycopg.OperationalError, match="read-only"):
        psycopg.connect(server.conninfo())
    psycopg.connect(server.reading_conninfo()).close()
    found = await server.attempt()
    assert (found.is_read_only, found.server_version > 0) == (True, True)


async def test_hosts_that_are_all_closed_are_unavailable(database: TestDatabase) -> None:
    closed = replace(server_at(database), parameters={**server_at(database).parameters, "host": "127.0.0.1,localhost"})
    closed = replace(closed, parameters={**closed.parameters, "port": f"{free_port()},{free_port()}"})
    with pytest.raises(Unavailable, match="the database is unavailable"):
        await closed.open()
    assert (await closed.attempt()).server_version == 0
