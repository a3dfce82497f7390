"""TLS of the public listener, with curl, openssl and httpx as clients of a real process."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from app.kernel.config import HttpServerSettings, Misconfigured, load
from app.kernel.http.asgi import Receive, Scope, Send, respond
from app.kernel.http.tls import Tls, tls
from app.processes import sections
from tests.commands.outcome import one_line
from tests.conftest import TestDatabase, program
from tests.support.certificates import Authority
from tests.support.project import ROOT, Project, Running, eventually
from tests.support.raw import read
from tests.support.serving import serving

READ_TIMEOUT_S = 1.0


@dataclass
class Encrypted:
    """A process that serves TLS, and what signs its certificates."""

    process: Running
    url: str
    authority: Authority

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 0

    def curl(self, path: str, *options: str) -> str:
        command = [program("curl"), "-sS", "--cacert", str(self.authority.file), *options, self.url + path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        return done.stdout + done.stderr

    def client(self, *, alpn: str = "") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.file))
        if alpn:
            context.set_alpn_protocols([alpn])
        return context

    def connect(self) -> ssl.SSLSocket:
        return self.client().wrap_socket(socket.create_connection(self.address, 10), server_hostname="127.0.0.1")

    def certificate(self) -> str:
        """Return the name in the certificate that a new connection gets."""
        with self.connect() as sock:
            return dict(pair for [pair] in (sock.getpeercert() or {})["subject"])["commonName"]

    def left_days(self) -> int:
        """Return in how many days the certificate ends, as the metrics have it."""
        return round((self.metric('http_server_certificate_not_after_seconds{listener="http"}') - time.time()) / 86400)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.process.url(listener='operations')}/metrics").text
        return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name} ")), 0)


@pytest.fixture(scope="module")
def encrypted(template: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority.made_in(folder / "certificates")
    cert, key = authority.sign("first.example.com")
    env = {
        "HTTP_SERVER_TLS_CERT": str(cert),
        "HTTP_SERVER_TLS_KEY": str(key),
        "HTTP_SERVER_READ_TIMEOUT": f"{READ_TIMEOUT_S}s",
        "HTTP_SERVER_MAX_CONNECTIONS": "20",
        "OPERATIONS_EXPOSE": "separate",
        "OPERATIONS_PORT": "0",
    }
    project = Project(ROOT, folder, template.copy().env)
    process = project.start("run-auth-http", env=env)
    url = process.url(listener="http")
    assert url.startswith("https://")
    yield Encrypted(process, url, authority)
    assert process.stop() == 0
    errors = [line["message"] for line in process.logs() if line["level"] in ("error", "critical")]
    assert [message for message in errors if not message.startswith("reloading certificate failed")] == []
    assert process.errors.read_text() == ""
    project.end()


def test_http_2_and_http_1_are_negotiated(encrypted: Encrypted) -> None:
    shown = ("-o", "/dev/null", "-w", "%{http_version} %{response_code}")
    assert encrypted.curl("/ready", "--http2", *shown) == "2 200"
    assert encrypted.curl("/ready", "--http1.1", *shown) == "1.1 200"
    with httpx.Client(http2=True, verify=encrypted.client()) as client:
        answer = client.post(f"{encrypted.url}/auth/v1/login", json={"username": "nobody", "password": "x"})
        assert (answer.http_version, answer.status_code) == ("HTTP/2", 401)
    with encrypted.connect() as sock:  # without ALPN
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))  # raises unless the end is announced (close_notify)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"strict-transport-security" not in answer.lower()


def test_versions_before_tls_1_2_are_refused(encrypted: Encrypted) -> None:
    def asked(*options: str) -> str:
        host, port = encrypted.address
        command = [program("openssl"), "s_client", "-connect", f"{host}:{port}", "-brief", *options]
        done = subprocess.run(command, input=b"", capture_output=True, timeout=20, check=False)
        return (done.stdout + done.stderr).decode()

    for version in ("1_2", "1_3"):
        assert f"Protocol version: TLSv{version.replace('_', '.')}" in asked(f"-tls{version}")
    for version in ("1", "1_1"):
        assert "Protocol version" not in asked(f"-tls{version}", "-cipher", "ALL:@SECLEVEL=0")
    assert "Protocol version" not in asked("-tls1_2", "-cipher", "AES128-SHA")  # no forward secrecy


def test_renegotiation_is_refused(encrypted: Encrypted) -> None:
    address, trusted = urlsplit(encrypted.url).netloc, str(encrypted.authority.file)
    command = [program("openssl"), "s_client", "-connect", address, "-tls1_2", "-CAfile", trusted]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        said = iter(client.stdout.readline, b"")
        assert any(b"Verify return code: 0" in line for line in said)
        client.stdin.write(b"R\n")
        client.stdin.flush()
        assert any(b"no renegotiation" in line for line in said)
        client.kill()


def test_a_client_that_does_not_speak_tls_or_says_nothing_is_closed_in_time(encrypted: Encrypted) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.get(encrypted.url.replace("https:", "http:") + "/health")
    begin = time.monotonic()
    held = [socket.create_connection(encrypted.address, 10) for _ in range(5)]
    held[0].sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a handshake
    for sock in held:
        assert sock.recv(1) == b""
        sock.close()
    assert READ_TIMEOUT_S <= time.monotonic() - begin < 8
    assert eventually(lambda: encrypted.metric('http_server_refused_total{reason="tls"}')) >= 1


def test_handshakes_count_to_the_limit_of_connections(encrypted: Encrypted) -> None:
    served: list[bool] = []
    held = [socket.create_connection(encrypted.address, 10) for _ in range(20)]
    try:
        open_ = 'http_server_connections{listener="http",state="open"}'
        assert eventually(lambda: encrypted.metric(open_) >= 10)
        assert encrypted.metric(open_) <= 20 + 8
        answer = encrypted.curl("/health", "-w", " %{response_code}")
        served.append(answer == '{"status":"ok"} 200')  # by one of the spare connections
    finally:
        for sock in held:
            sock.close()
    assert served == [True]
    assert eventually(lambda: encrypted.metric(open_) == 0)  # the next test connects within the limit


def test_a_refusal_reaches_a_client_that_is_still_sending(encrypted: Encrypted) -> None:
    with encrypted.connect() as sock:
        length = 50_000_000
        head = f"POST /auth/v1/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}"
        sock.sendall(head.encode() + b"\r\n\r\n")
        sock.settimeout(10)
        for _ in range(100):
            sock.sendall(b" " * 16384)
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_sighup_gives_the_new_certificate_to_new_connections_and_a_bad_one_changes_nothing(
    encrypted: Encrypted,
) -> None:
    cert, key = (encrypted.authority.folder / f"first.example.com.{kind}" for kind in ("pem", "key"))
    reloads = 0

    def reload(expected: str) -> None:
        encrypted.process.signal(signal.SIGHUP)
        eventually(lambda: expected in "\n".join(encrypted.process.messages()[reloads:]))

    with encrypted.connect() as old:

        def still_served() -> bool:
            old.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = read(old)
            return answer is not None and answer.status == 200 and answer.stays

        assert still_served()
        assert encrypted.left_days() == 30
        new_cert, new_key = encrypted.authority.sign("second.example.com", days=5)
        new_cert.replace(cert)
        reload("reloading certificate failed: http_server.tls_key: the key in ")
        assert encrypted.certificate() == "first.example.com"
        assert encrypted.left_days() == 30
        new_key.replace(key)
        reloads = len(encrypted.process.messages())
        reload("reloaded certificate: certificate of second.example.com, 127.0.0.1, valid until ")
        assert any("ends soon; renew it" in message for message in encrypted.process.messages()[reloads:])
        assert encrypted.certificate() == "second.example.com"
        assert encrypted.left_days() == 5
        assert still_served()
    reloads = len(encrypted.process.messages())
    reload("nothing to reload")
    assert "PRIVATE KEY" not in encrypted.process.output.read_text()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("no certificate", "http_server.tls_cert: missing, but http_server.tls_key is set"),
        ("no key", "http_server.tls_key: missing, but http_server.tls_cert is set"),
        ("absent", "http_server.tls_cert: cannot read {cert}: No such file or directory"),
        ("folder", "http_server.tls_key: cannot read {key}: Is a directory"),
        ("public", "http_server.tls_key: every user of this machine has access to {key}"),
        ("empty", "http_server.tls_cert: {cert} has no certificate in PEM format"),
        ("swapped", "http_server.tls_cert: {cert} has no certificate in PEM format"),
        ("no key inside", "http_server.tls_key: {key} has no private key in PEM format that can be used"),
        ("another key", "http_server.tls_key: the key in {key} is not that of the certificate in {cert}"),
        ("passphrase", "http_server.tls_key: the key in {key} has a passphrase"),
        ("expired", "http_server.tls_cert: the certificate in {cert} expired on "),
        ("early", "http_server.tls_cert: the certificate in {cert} is not valid before "),
    ],
)
def test_files_that_cannot_be_used_are_refused_with_the_reason(tmp_path: Path, fault: str, expected: str) -> None:
    authority = Authority.made_in(tmp_path)
    days = {"expired": (-1.0, -2.0), "early": (2.0, 1.0)}.get(fault, (30.0, -1.0))
    cert, key = authority.sign("a.example.com", days=days[0], begins=days[1])
    _, other_key = authority.sign("b.example.com")
    given = {"tls_cert": str(cert), "tls_key": str(key)}
    match fault:
        case "no certificate":
            given["tls_cert"] = ""
        case "no key":
            given["tls_key"] = ""
        case "absent":
            cert.unlink()
        case "folder":
            key.unlink()
            key.mkdir()
        case "public":
            key.chmod(0o644)
        case "empty":
            cert.write_text("")
        case "swapped":
            cert.write_bytes(key.read_bytes())
        case "no key inside":
            key.write_bytes(cert.read_bytes())
        case "another key":
            shutil.copyfile(other_key, key)
        case "passphrase":
            key.write_text(key.read_text().replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))
        case _:
            pass
    overrides = {f"http_server.{name}": value for name, value in given.items()}
    settings = load(ROOT, sections(), {"APP_ENV": "test"}, overrides)
    with pytest.raises(Misconfigured) as refused:
        tls(settings[HttpServerSettings])
    assert str(refused.value).startswith(expected.format(cert=cert, key=key))
    assert "\n" not in str(refused.value)


def test_a_certificate_ends_with_the_first_of_those_that_signed_it(tmp_path: Path) -> None:
    authority = Authority.made_in(tmp_path)
    cert, key = authority.sign("a.example.com", days=30)
    intermediate, _ = authority.sign("b.example.com", days=20)
    with cert.open("ab") as chain:
        chain.write(intermediate.read_bytes())
    assert round((Tls(str(cert), str(key)).not_after - datetime.now(UTC)).total_seconds() / 86400) == 20


def test_a_process_does_not_start_with_a_certificate_that_cannot_be_used(project: Project, tmp_path: Path) -> None:
    cert, key = Authority.made_in(tmp_path).sign("a.example.com", days=-1)
    env = {"HTTP_SERVER_TLS_CERT": str(cert), "HTTP_SERVER_TLS_KEY": str(key)}
    done = project.app("run-platform-http", "--port", "0", env=env)
    assert done.returncode == 78
    assert one_line(done.stderr).startswith(f"app: http_server.tls_cert: the certificate in {cert} expired on ")


@pytest.mark.parametrize("environment", ["test", "production"])
async def test_browsers_are_told_to_use_https_only_where_a_name_is_not_shared_with_others(
    tmp_path: Path, environment: str
) -> None:
    authority = Authority.made_in(tmp_path)
    cert, key = authority.sign("a.example.com")
    secrets = {name: os.urandom(32).hex() for name in ("POSTGRES_PASSWORD", "AUTH_MASTER_SECRET")}
    env = {"HTTP_SERVER_TLS_CERT": str(cert), "HTTP_SERVER_TLS_KEY": str(key), "HTTP_SERVER_HOST": "127.0.0.1"}
    more = {"APP_ENV": environment, "POSTGRES_HOST": "db.example.com", "AUTH_ISSUER": "https://a.example.com"}
    schemes: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        schemes.append(scope["scheme"])
        await respond(send, 200, b"text/plain", b"x")

    async with serving(app, **env, **more, **secrets) as server:
        context = ssl.create_default_context(cafile=str(authority.file))
        async with httpx.AsyncClient(http2=True, verify=context) as client:
            answer = await client.get(f"https://127.0.0.1:{server.port}/")
    assert answer.headers.get("strict-transport-security") == (
        "max-age=31536000" if environment == "production" else None
    )
    assert schemes == ["https"]
