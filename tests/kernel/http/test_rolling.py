"""Releases behind a proxy: no request fails, nothing is written twice. A killed replica fails what it was doing only.

`just drain` does it for a minute and three releases with each of the proxies: ROLLING_PROXIES, ROLLING_SECONDS and
ROLLING_RELEASES.
"""

import asyncio
import os
import signal
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.conftest import TestDatabase, log_in
from tests.support.debian import free_port
from tests.support.project import Project, Running, eventually
from tests.support.proxies import API, Proxied, proxied

NAMES = os.environ.get("ROLLING_PROXIES", "nginx").split()
SECONDS = float(os.environ.get("ROLLING_SECONDS", "8"))
RELEASES = int(os.environ.get("ROLLING_RELEASES", "1"))
DRAIN_DELAY = "3s"
"""The default, which is none in the environment of tests."""
CLIENTS = 6
PAUSE_S = 0.06
LATE_S = 0.1
"""How long a proxy may take to notice that the connections of a killed replica are closed."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request and how it ended."""

    id: str
    method: str
    path: str
    begun: float
    ended: float
    outcome: str

    @property
    def failed(self) -> bool:
        return self.outcome not in ("200", "201")


@dataclass
class Load:
    """Clients that send requests through the proxy, in a thread of their own, until told to stop."""

    proxy: Proxied
    token: str
    sent: list[Sent] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Load":
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(60)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        headers = {"Host": API, "Authorization": f"Bearer {self.token}"}
        base = f"https://127.0.0.1:{self.proxy.port}"
        async with httpx.AsyncClient(base_url=base, headers=headers, verify=self.proxy.context, timeout=30) as client:
            while not self.stop.is_set():
                name = uuid.uuid4().hex
                number += 1
                method, path, body = (
                    ("GET", "/auth/v1/me", None),
                    ("POST", "/auth/v1/roles", {"name": name}),
                    ("GET", "/platform/v1/queues", None),
                    ("POST", "/platform/v1/queues/default/resume", None),
                )[number % 4]
                begun = time.monotonic()
                try:
                    answer = await client.request(
                        method,
                        path,
                        json=body,
                        headers={"X-Request-ID": name},
                        extensions={"sni_hostname": API},
                    )
                    outcome = str(answer.status_code)
                    if outcome == "503" and "retry-after" not in answer.headers:
                        outcome = "503 without Retry-After"
                except httpx.HTTPError as error:
                    outcome = repr(error)
                self.sent.append(Sent(name, method, path, begun, time.monotonic(), outcome))
                await asyncio.sleep(PAUSE_S)


@dataclass
class Fleet:
    """Two replicas of each role, on ports that they keep."""

    project: Project
    ports: dict[str, tuple[int, int]]
    replicas: dict[tuple[str, int], Running] = field(default_factory=dict)

    def start(self, role: str, index: int) -> None:
        env = {"PROCESS_DRAIN_DELAY": DRAIN_DELAY, "HTTP_SERVER_TRUSTED_PROXIES": "127.0.0.1"}
        port = str(self.ports[role][index])
        self.replicas[role, index] = self.project.start(f"run-{role}-http", "--port", port, env=env)

    def ready(self, role: str, index: int) -> None:
        url = self.replicas[role, index].url()
        eventually(lambda: httpx.get(f"{url}/ready").status_code == 200)

    def release(self) -> None:
        """Replace every replica, one of each role at a time."""
        for index in (0, 1):
            for role in self.ports:
                self.replicas[role, index].signal(signal.SIGTERM)
            for role in self.ports:
                assert self.replicas[role, index].wait(60) == 0
                self.start(role, index)
            for role in self.ports:
                self.ready(role, index)

    def kill(self, role: str, index: int) -> tuple[float, float]:
        """Return when it was told to end, and when it had: on a busy machine, its sockets outlive SIGKILL."""
        self.replicas[role, index].signal(signal.SIGKILL)
        killed_at = time.monotonic()
        self.replicas[role, index].wait()
        return killed_at, time.monotonic()


@pytest.mark.parametrize("name", NAMES)
def test_releases_behind_a_proxy_fail_no_request_and_write_nothing_twice(
    project: Project, database: TestDatabase, tmp_path: Path, name: str
) -> None:
    project.env |= database.env
    fleet = Fleet(project.copy(tmp_path / "copy"), {role: (free_port(), free_port()) for role in ("auth", "platform")})
    for index in (0, 1):
        for role in fleet.ports:
            fleet.start(role, index)
    for role, index in fleet.replicas:
        fleet.ready(role, index)
    client = log_in(project, fleet.replicas["auth", 0])
    token = client.headers["authorization"].removeprefix("Bearer ")
    (folder := tmp_path / "proxy").mkdir()
    with proxied(name, folder, fleet.ports) as proxy, Load(proxy, token) as load:
        begun = time.monotonic()
        eventually(lambda: len(load.sent) > 20)
        for number in range(RELEASES):
            if number == RELEASES // 2:
                new = fleet.project.root / "migrations" / "29991231235959_auth_add_note_to_roles.sql"
                good = "ALTER TABLE auth.roles ADD COLUMN note text;\n"
                new.write_text(f"{good}ALTER TABLE auth.nothing ADD COLUMN note text;\n")
                new.with_suffix(".rollback.sql").write_text("ALTER TABLE auth.roles DROP COLUMN note;\n")
                refused = fleet.project.app("run-auth-http", "--port", "0")
                assert refused.returncode == 1
                assert f'{new.name}: apply failed: relation "auth.nothing" does not exist' in refused.stderr
                new.write_text(good)
            fleet.release()
        released = len(load.sent)
        time.sleep(max(0.5, SECONDS / 2 - (time.monotonic() - begun)))
        killed_at, gone_at = fleet.kill("auth", 1)
        time.sleep(max(1.5, SECONDS - (time.monotonic() - begun) - 4))
        fleet.start("auth", 1)
        fleet.ready("auth", 1)
        time.sleep(0.5)
        seconds = time.monotonic() - begun
    failed = [each for each in load.sent if each.failed]
    counts = Counter((each.method, each.outcome) for each in load.sent)
    cut = [each for each in failed if each.begun - LATE_S < gone_at and killed_at < each.ended]
    in_flight = sum(each.begun < killed_at < each.ended for each in load.sent)
    print(
        f"{name}: {seconds:.0f} s, {len(load.sent)} requests ({released} until the last release ended), {dict(counts)}"
    )
    print(f"{name}: at SIGKILL {in_flight} were in flight on both replicas of both roles, {len(cut)} failed: {cut}")
    assert [each for each in failed if each not in cut] == []
    written = Counter(request for (request,) in database.all("SELECT request_id FROM kernel.audit"))
    posts = {each.id: each for each in load.sent if each.method == "POST"}
    assert {sent: times for sent, times in written.items() if sent in posts and times > 1} == {}
    assert {each.id for each in posts.values() if not each.failed} <= written.keys()
    roles = [role for (role,) in database.all("SELECT name FROM auth.roles")]
    made = {each.id for each in posts.values() if each.path.endswith("/roles") and not each.failed}
    assert made <= set(roles)
    assert len(roles) == len(set(roles)) <= len(made) + len(cut)
    assert database.all("SELECT count(note) FROM auth.roles") == [(0,)]  # the migration was applied
    print(f"{name}: {len(posts)} POSTs, {sum(written[sent] for sent in posts)} written")
