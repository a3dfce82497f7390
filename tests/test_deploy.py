"""The configurations in `deploy/proxy/`, with the real proxies: what is routed, who gets through, nothing forged."""

import http.client
import itertools
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import ROOT, Project
from tests.support.proxies import API, PROXIES, SERVICE, Proxied, proxied

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


@dataclass
class Guarded:
    """A service behind a proxy, and what the proxy asked auth."""

    proxy: Proxied
    asked: list[Pairs]

    def get(self, *headers: tuple[str, str], body: bytes | None = None) -> tuple[int, Pairs]:
        """Return the status, and the headers that reached the service."""
        connection = http.client.HTTPConnection(SERVICE)
        sock = socket.create_connection(("127.0.0.1", self.proxy.port), 10)
        connection.sock = self.proxy.context.wrap_socket(sock, server_hostname=SERVICE)
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
        proxied(
            request.param, tmp_path_factory.mktemp("proxy"), {"auth": (upstream,) * 2, "service": (upstream,)}
        ) as proxy,
    ):
        yield Guarded(proxy, asked)


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
            chain = [value for name, value in headers if plain(name) == "xforwardedfor"]
            assert set(",".join(chain).replace(" ", "").split(",")) == {"127.0.0.1"}
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


class Breaking(Recorder):
    """A replica that reads a request and closes the connection without an answer, when told to."""

    received: Counter[str]
    breaks: bool

    def do_GET(self) -> None:
        if self.path == "/ready":
            self._answer(200, b"", {})
            return
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.received[self.headers.get("X-Request-ID", "")] += 1
        self.close_connection = type(self).breaks
        if not self.close_connection:
            with suppress(ConnectionError):  # a health check that was given up
                self._answer(200, self.path.encode(), {})

    do_POST = do_GET  # noqa: N815


@contextmanager
def replica(received: Counter[str]) -> Iterator[tuple[int, type[Breaking]]]:
    kind = type("Replica", (Breaking,), {"received": received, "breaks": False})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_port, kind
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_routes_only_the_api_and_never_sends_a_post_twice(tmp_path: Path, name: str) -> None:
    received: Counter[str] = Counter()
    with (
        replica(received) as (auth, first),
        replica(received) as (other, _),
        replica(received) as (platform, _),
        ExitStack() as leaving,
        proxied(
            name, tmp_path, {"auth": (auth, other), "platform": (platform, leaving.enter_context(replica(received))[0])}
        ) as proxy,
    ):
        for path in ("/auth/v1/login", "/oauth/token", "/.well-known/jwks.json", "/platform/v1/jobs"):
            assert proxy.get(path).text == path
        internal = ["/metrics", "/docs", "/openapi.json", "/ready", "/health", "/", "/auth/v2/x", "/platformx/v1/jobs"]
        internal += ["/auth/v1/../../metrics", "/auth/v1/%2e%2e/%2e%2e/metrics"]
        seen = received.total()
        for path in internal:
            assert proxy.get(path).status_code in (400, 404), path
        assert received.total() == seen
        encoded = "/platform/v1/..%2f..%2fmetrics"  # a name with slashes for us, so it may be passed on as it stands
        answer = proxy.get(encoded)
        assert answer.status_code in (400, 404) or answer.text.lower() == encoded
        with httpx.Client() as client:
            answer = client.get(f"http://127.0.0.1:{proxy.plain_port}/auth/v1/me", headers={"Host": API})
        assert (answer.status_code // 100, answer.headers["location"][:8]) == (3, "https://")
        # a replica that has just gone: what cannot be sent to it is sent to the other one
        leaving.close()
        for number in range(10):
            for method in ("GET", "POST"):
                sent = f"{method}-{number}"
                answer = proxy.ask(method, "/platform/v1/jobs", headers={"X-Request-ID": sent})
                assert (answer.status_code, received[sent]) == (200, 1), sent
        # a replica that takes requests and breaks down: a POST may have been executed
        first.breaks = True
        outcomes: Counter[tuple[str, int, int]] = Counter()
        for number in range(10):
            for method in ("GET", "POST", "GET"):  # so that each method reaches both replicas, in turns
                sent = f"broken-{method}-{number}-{outcomes.total()}"
                body = b"{}" if method == "POST" else None
                answer = proxy.ask(method, "/auth/v1/roles", headers={"X-Request-ID": sent}, content=body)
                outcomes[method, answer.status_code, received[sent]] += 1
        print(name, dict(outcomes))
        assert all(times == 1 for method, _, times in outcomes if method == "POST"), outcomes
        assert {status for method, status, _ in outcomes if method == "GET"} == {200}, outcomes


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_has_our_limits_and_does_not_upgrade(tmp_path: Path, name: str) -> None:
    received: Counter[str] = Counter()
    with replica(received) as (auth, _), proxied(name, tmp_path, {"auth": (auth, auth)}) as proxy:
        if name != "traefik":  # which leaves that to the process
            assert proxy.ask("POST", "/auth/v1/login", content=b"x" * 1_100_000).status_code == 413
        assert proxy.ask("POST", "/auth/v1/login", content=b"x" * 1_000_000).status_code == 200
        assert proxy.get("/auth/v1/me", headers={"Host": API, "X-Long": "x" * 24_000}).status_code in (400, 431)
        upgrade = {"Host": API, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        assert proxy.get("/auth/v1/me", headers=upgrade).status_code == 200


@pytest.fixture(scope="module")
def auth(template: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A real auth process, and who signs in there."""
    database = template.copy()
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
    with (
        recording() as (service, _),
        proxied(name, tmp_path, {"auth": (port_of_auth,) * 2, "service": (service,)}) as proxy,
    ):

        def get(**headers: str) -> tuple[int, Any]:
            answer = proxy.get("/x", SERVICE, headers={"Host": SERVICE, **forged, **headers})
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
