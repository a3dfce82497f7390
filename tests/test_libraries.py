"""docs/libraries.md is true: each flaw is still there, and nothing else is patched."""

import ast
import asyncio
import getpass
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import h11
import httpx2
import nats.aio.client
import psycopg
import pytest
import requests
import typer
from apscheduler.triggers.cron import CronTrigger
from dynaconf import Dynaconf
from hypercorn.protocol.h11 import H2CProtocolRequiredError, H11Protocol
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import TraceState

from app.kernel.product import NAME
from tests.support.project import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs/libraries.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| library")
]
NAMED = {file for row in ROWS for file in re.findall(rf"`({NAME}/[^`]+)`", row[3])}


@pytest.mark.parametrize(("library", "looked_at"), [(row[0].strip("| "), row[1]) for row in ROWS])
def test_the_version_that_was_looked_at_is_the_one_installed(library: str, looked_at: str) -> None:
    assert version(library).startswith(f"{looked_at}.")


def test_every_row_names_a_test_of_this_file_and_files_that_exist() -> None:
    assert len(ROWS) > 8
    for row in ROWS:
        assert callable(globals()[row[4].strip("` |")])
    assert [file for file in NAMED if not (ROOT / file).is_file()] == []


def test_nothing_is_patched_and_no_private_name_is_used_that_is_not_listed() -> None:
    found = {str(path.relative_to(ROOT)): list(intrusions(path)) for path in (ROOT / NAME).rglob("*.py")}
    assert {file: places for file, places in found.items() if places and file not in NAMED} == {}
    assert found[f"{NAME}/kernel/http/protocols.py"]


def intrusions(path: Path) -> Iterator[str]:
    """Return where a file assigns to an attribute of a library, or imports one of its private names."""
    tree = ast.parse(path.read_text())
    foreign: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            foreign |= {alias.asname or alias.name.partition(".")[0] for alias in node.names if is_foreign(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level and is_foreign(node.module):
            foreign |= {alias.asname or alias.name for alias in node.names}
            private = [*node.module.split(".")[1:], *(alias.name for alias in node.names)]
            yield from (f"{node.lineno}: {name}" for name in private if name.startswith("_"))
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
        targets = [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else targets
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            targets = [ast.Attribute(node.args[0], "set")]
        for target in targets:
            inner: ast.expr = target
            while isinstance(inner, ast.Attribute):
                inner = inner.value
            if isinstance(target, ast.Attribute) and isinstance(inner, ast.Name) and inner.id in foreign:
                yield f"{node.lineno}: {ast.unparse(target)}"


def is_foreign(module: str) -> bool:
    root = module.partition(".")[0]
    return root != NAME and root not in sys.stdlib_module_names


@pytest.mark.parametrize(
    ("source", "places"),
    [
        ("import requests\nrequests.Session.send = 1", ["2: requests.Session.send"]),
        ("import a.b\na.b.c += 1", ["2: a.b.c"]),
        ("from a import b\nsetattr(b, 'c', 1)", ["2: b.set"]),
        ("from a import b\ndel b.c", ["2: b.c"]),
        ("from a._b import c", ["1: _b"]),
        ("from a import _b", ["1: _b"]),
        ("import sys\nsys.stdout = 1", []),
        ("import a\na = 1\nx.b = a.b", []),
    ],
)
def test_a_patch_is_noticed(tmp_path: Path, source: str, places: list[str]) -> None:
    (tmp_path / "code.py").write_text(source)
    assert list(intrusions(tmp_path / "code.py")) == places


# What each library does


def test_h11_accepts_what_proxies_read_differently() -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\nHost: a\nX: b\n c\nContent-Length: 0, 0\n\n")
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert dict(event.headers)[b"x"] == b"b c"


async def test_hypercorn_upgrades_whoever_asks() -> None:
    class Asked(H11Protocol):
        def __init__(self) -> None:
            self.connection = h11.Connection(h11.SERVER)
            self.config = cast("Any", type("Config", (), {"response_headers": lambda _self, _protocol: []})())

        async def _send_h11_event(self, event: object) -> None:
            assert getattr(event, "status_code", 0) == 101

    request = h11.Request(method="GET", target="/", headers=[("Host", "a"), ("Upgrade", "h2c")])
    with pytest.raises(H2CProtocolRequiredError):
        await Asked()._check_protocol(request)


async def test_psycopg_keeps_the_socket_of_an_attempt_in_the_traceback() -> None:
    closed = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(100):
            pass
        closed.set()
        writer.close()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        attempt = psycopg.AsyncConnection.connect(f"host=127.0.0.1 port={port} user=a dbname=a sslmode=disable")
        with pytest.raises(TimeoutError) as kept:
            await asyncio.wait_for(attempt, 0.3)
        await asyncio.sleep(0.1)
        assert not closed.is_set()
        del kept  # with the traceback, the socket goes
        await asyncio.wait_for(collected(closed), 5)


async def collected(closed: asyncio.Event) -> None:
    import gc

    while not closed.is_set():
        gc.collect()
        await asyncio.sleep(0.01)


def test_requests_can_only_be_traced_from_outside() -> None:
    assert requests.Session().hooks == {"response": []}


def test_opentelemetry_drops_keys_of_level_2(caplog: pytest.LogCaptureFixture) -> None:
    assert len(TraceState([("0vendor", "1"), ("vendor", "1")])) == 1


def test_opentelemetry_hashes_a_resource_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = Resource({"service.name": "a"})
    hashed: list[str] = []
    dumps = sys.modules["json"].dumps
    monkeypatch.setattr("opentelemetry.sdk.resources.dumps", lambda *a, **k: hashed.append("") or dumps(*a, **k))
    assert hash(resource) == hash(resource)
    assert len(hashed) == 2


def test_yoyo_asks_for_the_name_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    from yoyo.backends.base import DatabaseBackend

    monkeypatch.setattr(getpass, "getuser", lambda: "of-getpass")
    monkeypatch.setattr(socket, "getfqdn", lambda: "of-dns")
    row = DatabaseBackend.get_log_data(cast("Any", None))
    assert (row["username"], row["hostname"]) == ("of-getpass", "of-dns")


def test_dynaconf_joins_lists_obeys_keys_and_misses_no_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("queue:\n  names: [a]\n  size: 1\n")
    second.write_text("queue:\n  names: [b]\nqueue__size: 2\n")
    files = [str(first), str(second), str(tmp_path / "missing.yaml")]
    read: Any = Dynaconf(settings_files=files, merge_enabled=True, envvar_prefix=False, loaders=[])
    assert read.as_dict()["QUEUE"] == {"names": ["a", "b"], "size": 2}


def test_dynaconf_loads_jinja2() -> None:
    loaded = "import sys, dynaconf; print('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "True\n"


def test_apscheduler_takes_weekday_0_for_monday() -> None:
    trigger = CronTrigger.from_crontab("0 0 * * 0", timezone=UTC)
    fires = trigger.get_next_fire_time(None, datetime(2026, 11, 27, tzinfo=UTC))
    assert fires is not None
    assert f"{fires:%A}" == "Monday"


def test_httpx2_logs_urls_with_their_query(caplog: pytest.LogCaptureFixture) -> None:
    transport = httpx2.MockTransport(lambda _: httpx2.Response(204))
    with caplog.at_level(logging.INFO, "httpx2"), httpx2.Client(transport=transport) as client:
        client.get("http://example.com/?key=of-query")
    assert "of-query" in caplog.text


async def test_nats_signs_in_to_a_tls_address_without_tls() -> None:
    signed_in = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576}\r\n')
        signed_in.set_result(await reader.readline())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = nats.aio.client.Client()
    url = f"tls://user:pass@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    connecting = asyncio.ensure_future(client.connect(url, allow_reconnect=False, connect_timeout=5))
    try:
        assert b'"pass": "pass"' in await asyncio.wait_for(signed_in, 5)
    finally:
        connecting.cancel()
        await asyncio.wait({connecting})
        server.close()
        await client.close()


def test_typer_completes_only_with_its_options() -> None:
    # each in a process of its own: a Typer with the options sets completion up for the whole process
    def asked(add_completion: bool) -> str:
        single = f"import typer; it = typer.Typer(add_completion={add_completion}); it.command()(lambda: None)"
        command = [sys.executable, "-c", f"{single}; it(prog_name='single')"]
        env = {**os.environ, "_SINGLE_COMPLETE": "source_bash"}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout

    assert "complete -o default -F _single_completion single" in asked(True)
    assert not asked(False)
    assert not [name for name in dir(typer) if "completion" in name and callable(getattr(typer, name))]
