"""No stop cuts what was executed: effects are counted against answers, while clients keep coming.

`just drain` does it for ten stops and at a higher rate: DRAIN_STOPS and DRAIN_RATE (new connections a second).
"""

import asyncio
import json
import os
import signal
import ssl
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
import httpx
import pytest

from tests.conftest import SUPERUSER, TestDatabase
from tests.support.certificates import Authority
from tests.support.project import Project, eventually
from tests.support.proxies import API, proxied

STOPS = int(os.environ.get("DRAIN_STOPS", "1"))
RATE = float(os.environ.get("DRAIN_RATE", "25"))
LOAD_S = 2.0
"""Before the stop: twice as long as a request takes."""
ANSWERED, UNREAD, CUT = "answered", "refused unread", "cut"


async def closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection; with TLS, that takes a round trip."""
    writer.close()
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(5):
            await writer.wait_closed()


@dataclass
class Load:
    """Clients of one server; each request makes a role with a name of its own."""

    port: int
    token: str
    tls: ssl.SSLContext | None = None
    outcomes: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    def body(self) -> tuple[str, bytes]:
        name = uuid.uuid4().hex
        self.outcomes[name] = UNREAD
        return name, json.dumps({"name": name}).encode()

    def request(self) -> tuple[str, bytes]:
        name, body = self.body()
        head = (
            f"POST /auth/v1/roles HTTP/1.1\r\nHost: {API}\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return name, head.encode() + body

    async def answer(self, name: str, reader: asyncio.StreamReader) -> bool:
        """Read an answer; return whether another may follow on the connection."""
        read = b""
        try:
            read = await reader.readuntil(b"\r\n\r\n")
            head = read.decode().lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            read += await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            read += error.partial if isinstance(error, asyncio.IncompleteReadError) else b""
            self.outcomes[name] = CUT if read else UNREAD
            self.details[name] = repr(error)
            return False
        self.outcomes[name] = f"{ANSWERED} {head.split()[1]}"
        return "connection: close" not in head

    async def opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        name = API if self.tls else None
        try:
            return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, server_hostname=name)
        except OSError:
            return None

    async def fresh(self) -> None:
        """One request on a connection of its own."""
        await self.pipelined(1)

    async def pipelined(self, count: int = 3) -> None:
        """Several requests at once on one connection."""
        if (streams := await self.opened()) is None:
            return
        reader, writer = streams
        requests = [self.request() for _ in range(count)]
        writer.write(b"".join(request for _, request in requests))
        for name, _ in requests:
            if not await self.answer(name, reader):
                break
        await closed(writer)

    async def kept(self) -> None:
        """One request after the other on a connection, as long as there is one."""
        while not self.stopped and (streams := await self.opened()) is not None:
            reader, writer = streams
            while not self.stopped:
                name, request = self.request()
                writer.write(request)
                if not await self.answer(name, reader):
                    break
                if not self.outcomes[name].endswith("201"):  # of nginx, when its server is gone
                    await asyncio.sleep(0.1)
            await closed(writer)

    async def http2(self) -> None:
        """Requests on streams of one HTTP/2 connection, one each 100 ms."""
        if (streams := await self.opened()) is None:
            return
        reader, writer = streams
        client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        client.initiate_connection()
        names: dict[int, str] = {}
        gone = asyncio.Event()

        async def read() -> None:
            while data := await reader.read(65536):
                for event in client.receive_data(data):
                    name = names.get(getattr(event, "stream_id", 0) or 0, "")
                    if isinstance(event, h2.events.ResponseReceived):
                        self.outcomes[name] = CUT
                        self.details[name] = dict(event.headers)[":status"]
                    elif isinstance(event, h2.events.DataReceived):
                        client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded):
                        self.outcomes[name] = f"{ANSWERED} {self.details[name]}"
                    elif isinstance(event, h2.events.ConnectionTerminated):
                        gone.set()
                writer.write(client.data_to_send())

        async def write() -> None:
            while not gone.is_set():
                name, body = self.body()
                stream = client.get_next_available_stream_id()
                names[stream] = name
                headers = {":method": "POST", ":path": "/auth/v1/roles", ":scheme": "http", ":authority": API}
                headers |= {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
                client.send_headers(stream, list(headers.items()))
                client.send_data(stream, body, end_stream=True)
                writer.write(client.data_to_send())
                await asyncio.sleep(0.1)

        writing = asyncio.ensure_future(write())
        try:
            await read()
        except ConnectionError:
            pass
        finally:
            gone.set()
            await asyncio.gather(writing, return_exceptions=True)
            await closed(writer)

    async def run(self, stop: Callable[[], None], ended: Callable[[], bool], *, h2c: bool) -> None:
        """Send requests until the process has ended, which is asked to stop on the way."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as clients:
            for _ in range(4):
                clients.create_task(self.kept())
            if h2c:
                clients.create_task(self.http2())
            begin, sent, asked = loop.time(), 0, False
            while not ended():
                now = loop.time() - begin
                if not asked and now > LOAD_S:
                    asked = True
                    stop()
                while sent < now * RATE:
                    sent += 1
                    clients.create_task(self.pipelined() if sent % 10 == 0 else self.fresh())
                await asyncio.sleep(0.002)
            self.stopped = True


_SLOW = """
            if self.id == "auth.create_role":
                import asyncio
                await asyncio.sleep(1)
"""


@pytest.fixture
def slow(project: Project, tmp_path: Path) -> Project:
    """The project, where making a role takes a second after it was committed."""
    copied = project.copy(tmp_path / "copy")
    operation = copied.root / "app/kernel/actions/operation.py"
    text = operation.read_text()
    operation.write_text(text.replace("\n            return result\n", f"{_SLOW}            return result\n"))
    assert operation.read_text() != text
    return copied


def signed_in(project: Project, url: str, tls: ssl.SSLContext | None) -> str:
    """Make the superuser; return an access token."""
    username, password = SUPERUSER
    made = project.app("auth", "create-superuser", "--username", username, "--password-stdin", stdin=password)
    assert made.returncode == 0, made.stderr
    with httpx.Client(base_url=url, verify=tls or True, timeout=10) as client:
        eventually(lambda: client.get("/ready").status_code == 200)
        answer = client.post("/auth/v1/login", json={"username": username, "password": password})
    assert answer.status_code == 200, answer.text
    return answer.json()["session"]["access_token"]


@pytest.mark.parametrize("way", ["directly", "with TLS", "behind nginx"])
@pytest.mark.parametrize("stop", range(STOPS))
def test_a_stop_cuts_nothing_that_was_executed(
    slow: Project, database: TestDatabase, tmp_path: Path, way: str, stop: int
) -> None:
    env = {"PROCESS_DRAIN_DELAY": "500ms", "PROCESS_GRACE": "20s", "HTTP_SERVER_H2C": "true"}
    tls = None
    if way == "with TLS":
        authority = Authority.made_in(tmp_path / "certificates")
        cert, key = authority.sign(API)
        env |= {"HTTP_SERVER_TLS_CERT": str(cert), "HTTP_SERVER_TLS_KEY": str(key), "OPERATIONS_EXPOSE": "separate"}
        env["OPERATIONS_PORT"] = "0"
        tls = ssl.create_default_context(cafile=str(authority.file))
    running = slow.start("run-auth-http", env=env)
    port = urlsplit(running.url(listener="http")).port or 0
    token = signed_in(slow, f"{'https' if tls else 'http'}://127.0.0.1:{port}", tls)

    def measure(port: int, tls: ssl.SSLContext | None, *, h2c: bool) -> Load:
        load = Load(port, token, tls)
        ended = lambda: running.popen.poll() is not None  # noqa: E731
        asyncio.run(load.run(lambda: running.signal(signal.SIGTERM), ended, h2c=h2c))
        return load

    if way == "behind nginx":
        with proxied("nginx", tmp_path, {"auth": (port, port)}) as proxy:
            load = measure(proxy.port, proxy.context, h2c=False)
    else:
        load = measure(port, tls, h2c=tls is None)
    assert running.wait() == 0
    executed = {name for (name,) in database.all("SELECT name FROM auth.roles")}
    answered = {name for name, outcome in load.outcomes.items() if outcome == f"{ANSWERED} 201"}
    counts = Counter(load.outcomes.values())
    print(way, dict(counts), len(executed))
    lost = [(load.outcomes.get(name), load.details.get(name)) for name in executed - answered]
    assert not lost, f"{len(lost)} of {counts} were executed and not answered: {lost[:5]}"
    assert answered <= executed
    assert len(answered) > RATE, counts
    assert not any("were cancelled" in message for message in running.messages())
