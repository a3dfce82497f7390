"""One client has one address: in the audit trail, in its limits, in its sessions and in the log."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import ROOT, Project, Running, eventually

V4 = ["198.51.100.7", "198.51.100.7:40000", "::ffff:198.51.100.7", "[::FFFF:c633:6407]:1", "203.0.113.9, 198.51.100.7"]
V6 = ["2001:db8:7::1", "2001:DB8:7:0:0:0:0:1", '"[2001:db8:7::1]:443"', "2001:0db8:0007::0001%eth0"]
NEIGHBOUR = "2001:db8:7:0:ffff::2"


@pytest.fixture(scope="module")
def database(template: TestDatabase) -> TestDatabase:
    return template.copy()


@pytest.fixture(scope="module")
def process(database: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Project]]:
    env = database.env | {"HTTP_SERVER_TRUSTED_PROXIES": "127.0.0.0/8, ::1"}
    project = Project(ROOT, tmp_path_factory.mktemp("addresses"), env)
    try:
        started = project.start("run-auth-http")
        log_in(project, started)
        yield started, project
    finally:
        project.end()


def sign_in(url: str, forwarded: str, request_id: str, username: str, password: str = "wrong") -> int:
    headers = {"X-Forwarded-For": forwarded, "X-Request-ID": request_id}
    return httpx.post(
        f"{url}/auth/v1/login", json={"username": username, "password": password}, headers=headers, timeout=20
    ).status_code


@pytest.mark.parametrize(
    ("spellings", "address", "counted"),
    [(V4, "198.51.100.7", "198.51.100.7"), ([*V6, NEIGHBOUR], "2001:db8:7::1", "2001:db8:7::/64")],
    ids=["IPv4", "IPv6"],
)
def test_every_spelling_of_a_client_is_one_address_everywhere(
    process: tuple[Running, Project], database: TestDatabase, spellings: list[str], address: str, counted: str
) -> None:
    started, _ = process
    url = started.url()
    for number, forwarded in enumerate(spellings):
        assert sign_in(url, forwarded, f"v{len(spellings)}-{number}", f"nobody{number}") == 401
    expected = [NEIGHBOUR if forwarded == NEIGHBOUR else address for forwarded in spellings]
    ids = [f"v{len(spellings)}-{number}" for number in range(len(spellings))]

    def logged() -> bool:
        lines = {line["request_id"]: line["client_address"] for line in started.logs() if "client_address" in line}
        return [lines.get(name) for name in ids] == expected

    eventually(logged)
    limits = database.all("SELECT key FROM auth.limits WHERE starts_with(key, 'login:address:')")
    assert [key for (key,) in limits if counted in key] == [f"login:address:{counted}"]
    assert not [key for (key,) in limits if "::ffff" in key or "DB8" in key or "%" in key]
    assert sign_in(url, spellings[1], "good", *SUPERUSER) == 200
    sessions = database.all("SELECT address FROM auth.sessions ORDER BY id DESC LIMIT 1")
    assert [(str(found),) for (found,) in sessions] == [(address,)]
    trail = database.all("SELECT DISTINCT address FROM kernel.audit WHERE action = 'auth.login'")
    assert {found for (found,) in trail} - {"127.0.0.1"} <= {"198.51.100.7", "2001:db8:7::1", NEIGHBOUR}


def test_a_request_with_two_tokens_is_refused_whichever_is_good(process: tuple[Running, Project]) -> None:
    started, project = process
    good = log_in(project, started).headers["authorization"]
    where = urlsplit(started.url())
    for pair in ((good, "Bearer x"), ("Bearer x", good), (good, good), (good, "")):
        lines = "".join(f"Authorization: {value}\r\n" for value in pair)
        with socket.create_connection((where.hostname, where.port), timeout=10) as sock:
            sock.sendall(f"GET /auth/v1/me HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
            assert sock.recv(100).startswith(b"HTTP/1.1 400 ")
