"""The proxy configurations in `deploy/`, with the real proxies."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.conftest import log_in, required
from tests.support.project import ROOT, Project, eventually

IDENTITY = ("X-Auth-Actor-Id", "X-Auth-Actor-Type", "X-Auth-Permissions")


class Echo(BaseHTTPRequestHandler):
    """A service that answers with the headers it was sent."""

    def do_GET(self) -> None:
        body = "".join(f"{name}: {value}\n" for name, value in self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def configured(name: str, listen: int, auth: int, service: int) -> str:
    text = (ROOT / "deploy" / name).read_text()
    for placeholder, port in (("8000", listen), ("8080", auth), ("3000", service)):
        assert f"127.0.0.1:{placeholder}" in text
        text = text.replace(f"127.0.0.1:{placeholder}", f"127.0.0.1:{port}")
    return text


def nginx(folder: Path, text: str) -> list[str]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or required("nginx")
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = f"pid {folder}/pid;\nerror_log {folder}/error.log;\ndaemon off;\nmaster_process off;\nevents {{}}\n"
    (folder / "nginx.conf").write_text(f"{main}http {{\naccess_log off;\n{temporary}{text}\n}}\n")
    return [str(program), "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, text: str) -> list[str]:
    program = shutil.which("caddy") or required("caddy")
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https off\n}\n" + text)
    return [str(program), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@contextmanager
def proxy(command: list[str], folder: Path, port: int) -> Iterator[str]:
    with (folder / "proxy.log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env={"HOME": str(folder), "PATH": "/usr/bin:/bin"})
        try:

            def listening() -> bool:
                assert running.poll() is None, (folder / "proxy.log").read_text()
                with socket.socket() as sock:
                    return sock.connect_ex(("127.0.0.1", port)) == 0

            eventually(listening)
            yield f"http://127.0.0.1:{port}/anything"
        finally:
            running.terminate()
            running.wait(10)


@pytest.mark.parametrize(("name", "program"), [("nginx.conf", nginx), ("Caddyfile", caddy)])
def test_a_proxy_lets_only_the_signed_in_through_and_says_who_they_are(
    project: Project, tmp_path: Path, service: int, name: str, program: Callable[[Path, str], list[str]]
) -> None:
    running = project.start("run-auth-http")
    client = log_in(project, running)
    auth, port = httpx.URL(running.url()).port, free_port()
    assert auth is not None
    forged = dict.fromkeys(IDENTITY, "forged")
    with proxy(program(tmp_path, configured(name, port, auth, service)), tmp_path, port) as url:
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers=forged).status_code == 401
        assert httpx.get(url, headers={"authorization": "Bearer nonsense"}).status_code == 401
        answer = httpx.get(url, headers={**forged, "authorization": client.headers["authorization"]})
        assert answer.status_code == 200
        sent = dict(line.split(": ", 1) for line in answer.text.splitlines())
        assert "forged" not in answer.text
        assert {name.lower(): sent.get(name) for name in IDENTITY} == {
            "x-auth-actor-id": client.get("/auth/v1/me").json()["actor"]["id"],
            "x-auth-actor-type": "admin",
            "x-auth-permissions": "auth:superuser",
        }
        assert client.headers["authorization"] not in answer.text
        assert client.post("/auth/v1/logout").status_code == 204
        assert httpx.get(url, headers={"authorization": client.headers["authorization"]}).status_code == 401
