"""The proxy configurations in `deploy/`, with the real proxies: who gets through, and nothing forged with them."""

import http.client
import itertools
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import SUPERUSER, PostgresServer, create_database, log_in, program
from tests.support.project import ROOT, Project, eventually

VERIFIED = {"X-Auth-Actor-Id": "1f0", "X-Auth-Actor-Type": "admin", "X-Auth-Permissions": "auth:superuser"}
AUTHORIZED = ("Authorization", "Bearer good")
Pairs = list[tuple[str, str]]


class Recorder(BaseHTTPRequestHandler):
    """The service, which answers with the headers it was sent, and an auth that remembers those it was sent."""

    protocol_version = "HTTP/1.1"
    asked: list[Pairs]

    def do_GET(self) -> None:
        headers = list(self.headers.items())
        if self.path.startswith("/auth/v1/verify"):
            self.asked.append(headers)
            good = self.headers.get("Authorization") == AUTHORIZED[1]
            self._answer(200 if good else 401, b"", VERIFIED if good else {})
        else:
            self._answer(200, json.dumps(headers).encode(), {})

    do_POST = do_GET  # noqa: N815

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def recording() -> Iterator[tuple[int, list[Pairs]]]:
    asked: list[Pairs] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Recording", (Recorder,), {"asked": asked})) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def configured(name: str, listen: int, auth: int, service: int) -> str:
    text = (ROOT / "deploy" / name).read_text() + "\n# entry point at 127.0.0.1:8000\n"
    for placeholder, port in (("8000", listen), ("8080", auth), ("3000", service)):
        assert f"127.0.0.1:{placeholder}" in text
        text = text.replace(f"127.0.0.1:{placeholder}", f"127.0.0.1:{port}")
    return text


def nginx(folder: Path, text: str) -> list[str]:
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = f"pid {folder}/pid;\nerror_log {folder}/error.log;\ndaemon off;\nmaster_process off;\nevents {{}}\n"
    (folder / "nginx.conf").write_text(f"{main}http {{\naccess_log off;\n{temporary}{text}\n}}\n")
    return [program("nginx"), "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, text: str) -> list[str]:
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https off\n}\n" + text)
    return [program("caddy"), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def traefik(folder: Path, text: str) -> list[str]:
    (folder / "traefik.yaml").write_text(text)
    port = text.partition("entry point at 127.0.0.1:")[2].split()[0]
    options = [f"entrypoints.web.address=127.0.0.1:{port}", f"providers.file.filename={folder}/traefik.yaml"]
    options += ["providers.file.watch=false", "global.checknewversion=false", "global.sendanonymoususage=false"]
    return [program("traefik"), *(f"--{option}" for option in options)]


PROXIES: dict[str, Callable[[Path, str], list[str]]] = {
    "nginx.conf": nginx,
    "Caddyfile": caddy,
    "traefik.yaml": traefik,
}


@contextmanager
def proxied(name: str, folder: Path, auth: int, service: int) -> Iterator[int]:
    """Run a proxy with its shipped configuration, but for the ports; give the port it listens on."""
    port = free_port()
    command = PROXIES[name](folder, configured(name, port, auth, service))
    with (folder / "proxy.log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env={"HOME": str(folder), "PATH": "/usr/bin:/bin"})
        try:

            def serving() -> bool:
                assert running.poll() is None, (folder / "proxy.log").read_text()
                try:
                    return httpx.get(f"http://127.0.0.1:{port}/").status_code in (200, 401)
                except httpx.HTTPError:
                    return False

            eventually(serving, 40)
            yield port
        finally:
            running.terminate()
            running.wait(10)


@dataclass
class Guarded:
    """A service behind a proxy, and what the proxy asked auth."""

    port: int
    asked: list[Pairs]

    def get(self, *headers: tuple[str, str], body: bytes | None = None) -> tuple[int, Pairs]:
        """Return the status, and the headers that reached the service."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.putrequest("GET" if body is None else "POST", "/anything")
            for name, value in headers:
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        return answer.status, [(name, value) for name, value in json.loads(content)] if answer.status == 200 else []

    def arrived(self, *headers: tuple[str, str]) -> Pairs:
        """Return the headers that reached the service with a request that is let through; check who it is."""
        status, arrived = self.get(*headers, AUTHORIZED)
        assert status == 200
        assert [pair for pair in arrived if plain(pair[0]).startswith("xauth")] == list(VERIFIED.items())
        return arrived


def plain(name: str) -> str:
    """Return a name as a service sees it that tells neither case nor punctuation apart."""
    return "".join(character for character in name.lower() if character.isalnum())


@pytest.fixture(scope="module", params=PROXIES)
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with (
        recording() as (upstream, asked),
        proxied(request.param, tmp_path_factory.mktemp("proxy"), upstream, upstream) as port,
    ):
        yield Guarded(port, asked)


# Names that say who somebody is or where they come from
ORIGINS = [
    *(f"X-Auth-{name}" for name in ("Actor-Id", "Actor-Type", "Permissions", "User", "Roles", "Request-Email", "X")),
    *(f"X-Forwarded-{name}" for name in ("For", "Host", "Proto", "Method", "Uri", "User", "Prefix", "Port", "Server")),
    *(f"X-Forwarded-{name}" for name in ("Email", "Groups", "Preferred-Username", "Access-Token", "Ssl", "By", "F")),
    *("X-Forwarded-Tls-Client-Cert", "X-Forwarded-Tls-Client-Cert-Info", "Forwarded", "X-Real-IP", "X-Real-User"),
    *("X-Original-URL", "X-Original-URI", "X-Original-Method", "X-Original-Forwarded-For", "X-Rewrite-URL", "X-User"),
    *("X-Authenticated-User", "Remote-User", "X-Remote-Addr", "X-Client-IP", "True-Client-IP", "X-Cluster-Client-IP"),
    *(
        "Client-IP",
        "X-ClientIP",
        "CF-Connecting-IP",
        "Fastly-Client-IP",
        "WL-Proxy-Client-IP",
        "X-ProxyUser-IP",
        "X-IP",
    ),
    *(
        "X-Originating-IP",
        "X-Origin-IP",
        "X-Forward-For",
        "Forwarded-For",
        "X-HTTP-Forwarded-For",
        "X-HTTP-Host-Override",
    ),
    *("X-Host", "X-Scheme", "Via", "X-WebAuth-User", "X-Proxy-User", "X-Email", "X-Groups", "X-Username", "Auth-User"),
    *("X-Azure-ClientIP", "X-Real", "X-SSL-Client-Cert", "SSL-Client-Verify", "X-Goog-Authenticated-User-Email"),
    *("X-Amzn-Oidc-Identity", "X-MS-Client-Principal-Name", "X-Consumer-Username", "Impersonate-User"),
    *("Kbn-User", "X-Envoy-External-Address"),
]
SPELLINGS: list[Callable[[str], str]] = [
    str,
    str.lower,
    str.upper,
    lambda name: name.replace("-", "_"),
    lambda name: name.replace("-", "_", 1),
    lambda name: "_".join(name.rsplit("-", 1)),
    lambda name: name.replace("-", "."),
]
VALUES = ["forged", "203.0.113.9", "203.0.113.9, 203.0.113.10", "auth:superuser,forged", "for=203.0.113.9;host=forged"]


def is_forged(value: str) -> bool:
    return "forged" in value or "203.0.113" in value


def forgeries() -> Iterator[Pairs]:
    """Return every name in every spelling with one of the values, so many to a request."""
    names = dict.fromkeys(spelling(name) for name in ORIGINS for spelling in SPELLINGS)
    pairs = list(zip(names, itertools.cycle(VALUES), strict=False))
    yield from (pairs[start : start + 40] for start in range(0, len(pairs), 40))
    yield from ([(name, "forged"), (name, "203.0.113.9")] for name in ORIGINS[:10])
    yield [(f"X{mark}Auth{mark}Actor{mark}Id", "forged") for mark in "!#$%&'*+.^_`|~"]


def test_nothing_that_a_client_says_about_its_identity_or_origin_reaches_the_service_or_auth(guarded: Guarded) -> None:
    for forged in forgeries():
        guarded.asked.clear()
        arrived = guarded.arrived(*forged)
        assert [pair for pair in arrived if is_forged(pair[1])] == []
        [asked] = guarded.asked
        assert [pair for pair in asked if is_forged(pair[1])] == []
        for headers in (arrived, asked):
            assert [value for name, value in headers if plain(name) == "xforwardedfor"] == ["127.0.0.1"]
        assert AUTHORIZED[1] not in dict(arrived).values()
        assert guarded.get(*forged)[0] == 401


@pytest.mark.parametrize(
    "value",
    [
        "close, X-Auth-Actor-Id",
        "X-Auth-Actor-Id, X-Auth-Actor-Type, X-Auth-Permissions, X-Forwarded-For",
        "keep-alive, x-auth-permissions",
        ", ".join(ORIGINS),
    ],
)
def test_no_connection_header_drops_what_was_verified(guarded: Guarded, value: str) -> None:
    for headers in ([("Connection", value)], [("Connection", name) for name in value.split(", ")]):
        arrived = guarded.arrived(*headers, ("X-Auth-Actor-Id", "forged"))
        assert [value for name, value in arrived if plain(name) == "xforwardedfor"] == ["127.0.0.1"]


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "WebSocket", "HTTP/2.0", "TLS/1.0", "h2c, websocket", "x"])
def test_nothing_is_upgraded_by_auth_or_the_service(guarded: Guarded, protocol: str) -> None:
    handshake = [("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")]
    settings = ("HTTP2-Settings", "AAMAAABkAAQAoAAAAAIAAAAA")
    upgrade = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", protocol), settings, *handshake]
    guarded.asked.clear()
    assert guarded.get(*upgrade)[0] == 401
    arrived = guarded.arrived(*upgrade)
    for headers in (arrived, *guarded.asked):
        assert [name for name, _ in headers if name.lower() in ("upgrade", "http2-settings", "proxy-connection")] == []
        assert "upgrade" not in dict(headers).get("Connection", "").lower()


def test_the_headers_of_ordinary_requests_reach_the_service(guarded: Guarded) -> None:
    ordinary = {
        "Accept": "text/html",
        "Accept-Language": "de",
        "Content-Type": "application/json",
        "Cookie": "a=b; c=d",
        "Idempotency-Key": "k",
        "If-None-Match": '"e"',
        "Origin": "http://a.example",
        "Range": "bytes=0-1",
        "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "User-Agent": "test",
        "X-Request-ID": "r-1",
    }
    arrived = {name.lower(): value for name, value in guarded.arrived(*ordinary.items())}
    assert {name: arrived.get(name.lower()) for name in ordinary} == ordinary
    assert guarded.get(*ordinary.items(), AUTHORIZED, body=b"{}")[0] == 200


@pytest.fixture(scope="module")
def auth(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A real auth process, and who signs in there."""
    database = create_database(postgres)
    project = Project(ROOT, tmp_path_factory.mktemp("auth"), dict(database.env))
    try:
        yield log_in(project, project.start("run-auth-http"))
    finally:
        project.end()


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_lets_only_the_signed_in_through_and_says_who_they_are(
    auth: httpx.Client, tmp_path: Path, name: str
) -> None:
    again = auth.post("/auth/v1/login", json=dict(zip(("username", "password"), SUPERUSER, strict=True)))
    token = f"Bearer {again.json()['session']['access_token']}"
    forged = dict.fromkeys(VERIFIED, "forged")
    port_of_auth = auth.base_url.port
    assert port_of_auth is not None
    with recording() as (service, _), proxied(name, tmp_path, port_of_auth, service) as port:

        def get(**headers: str) -> tuple[int, Any]:
            answer = httpx.get(f"http://127.0.0.1:{port}/x", headers={**forged, **headers})
            return answer.status_code, answer.json() if answer.status_code == 200 else None

        assert get()[0] == 401
        assert get(authorization="Bearer nonsense")[0] == 401
        assert get(upgrade="h2c", connection="Upgrade, HTTP2-Settings", **{"http2-settings": "AAMAAABk"})[0] == 401
        status, arrived = get(authorization=token)
        assert status == 200
        assert {name: value for name, value in arrived if plain(name).startswith("xauth")} == {
            "X-Auth-Actor-Id": auth.get("/auth/v1/me").json()["actor"]["id"],
            "X-Auth-Actor-Type": "admin",
            "X-Auth-Permissions": "auth:superuser",
        }
        assert token not in dict(arrived).values()
        assert auth.post("/auth/v1/logout", headers={"authorization": token}).status_code == 204
        assert get(authorization=token)[0] == 401
