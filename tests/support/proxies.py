"""The proxies of `deploy/proxy/` with the shipped configurations, but for addresses and certificates."""

import os
import re
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.conftest import program
from tests.support.certificates import Authority
from tests.support.debian import free_port
from tests.support.project import ROOT, eventually

FOLDER = ROOT / "deploy" / "proxy"
API, SERVICE = "api.example.com", "service.example.com"
REPLICAS = {"auth": (8101, 8102), "platform": (8201, 8202), "service": (3000,)}
"""The ports of upstreams in the configurations."""
NGINX_FAILS = "max_fails=3 fail_timeout=2s"


@dataclass
class Proxied:
    """A proxy that runs."""

    port: int
    plain_port: int
    context: ssl.SSLContext
    command: list[str]
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / "proxy.log"

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdout=output, stderr=output, env={"HOME": str(self.folder), "PATH": "/usr/bin:/bin"}
            )

    def kill(self) -> None:
        """SIGKILL to it and its workers, which would serve on without it."""
        assert self.process is not None
        workers = psutil.Process(self.process.pid).children()
        self.process.kill()
        for worker in workers:
            worker.kill()
        self.process.wait()
        psutil.wait_procs(workers, 10)

    def client(self, host: str = API) -> httpx.Client:
        """Return a client of one of its hosts; to be closed."""
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}", verify=self.context, headers={"Host": host}, timeout=15
        )

    def get(self, path: str, host: str = API, **options: Any) -> httpx.Response:
        return self.ask("GET", path, host, **options)

    def ask(self, method: str, path: str, host: str = API, **options: Any) -> httpx.Response:
        """Send a request on a connection of its own."""
        with self.client(host) as client:
            return client.request(method, path, extensions={"sni_hostname": host}, **options)


def substituted(name: str, values: Mapping[str, str]) -> str:
    """Return a shipped file with other values; each of those that are replaced must be there."""
    text = (FOLDER / name).read_text()
    missing = [old for old in values if old not in text]
    assert not missing, f"{name} has no {missing}"
    pattern = "|".join(map(re.escape, values))
    return re.sub(f"({pattern})(?![0-9])", lambda found: values[found[1]], text)


def nginx(folder: Path, values: Mapping[str, str], port: int, plain: int) -> list[str]:
    listen = {"listen 443 ": f"listen 127.0.0.1:{port} ", "listen 80;": f"listen 127.0.0.1:{plain};"}
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    main = f"pid {folder}/pid;\nerror_log {folder}/error.log;\ndaemon off;\nevents {{ worker_connections 4096; }}\n"
    main += "user root;\n" if os.geteuid() == 0 else ""
    text = substituted("nginx.conf", {**values, **listen})
    (folder / "nginx.conf").write_text(f"{main}http {{\naccess_log off;\n{temporary}{text}\n}}\n")
    checked([program("nginx"), "-t", "-q", "-c", str(folder / "nginx.conf")], expected="")
    return [program("nginx"), "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, values: Mapping[str, str], port: int, plain: int) -> list[str]:
    ports = {"http_port 80": f"http_port {plain}", "https_port 443": f"https_port {port}\n\tdefault_bind 127.0.0.1"}
    text = substituted("Caddyfile", {**values, **ports, "\tservers {": "\tadmin off\n\tservers {"})
    (folder / "Caddyfile").write_text(text)
    options = ["--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    checked([program("caddy"), "validate", *options], expected="Valid configuration")
    checked([program("caddy"), "fmt", "--diff", str(FOLDER / "Caddyfile")])
    return [program("caddy"), "run", *options]


def traefik(folder: Path, values: Mapping[str, str], port: int, plain: int) -> list[str]:
    verify = {"127.0.0.1:8100": f"127.0.0.1:{free_port()}"}
    (folder / "traefik-routes.yaml").write_text(substituted("traefik-routes.yaml", {**values, **verify}))
    entries = {'":443"': f"127.0.0.1:{port}", '":80"': f"127.0.0.1:{plain}", "/etc/traefik": str(folder)}
    (folder / "traefik.yaml").write_text(substituted("traefik.yaml", {**entries, **verify}))
    return [program("traefik"), f"--configfile={folder}/traefik.yaml"]


def checked(command: list[str], expected: str | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert expected is None or (expected in said if expected else not said), said


PROXIES: dict[str, Callable[[Path, Mapping[str, str], int, int], list[str]]] = {
    "nginx": nginx,
    "caddy": caddy,
    "traefik": traefik,
}


@contextmanager
def proxied(name: str, folder: Path, ports: Mapping[str, tuple[int, ...]]) -> Iterator[Proxied]:
    """Run a proxy before upstreams on some ports, in the order of REPLICAS; those not given are nowhere."""
    authority = Authority.made_in(folder / "certificates")
    cert, key = authority.sign(API, SERVICE)
    nowhere = str(free_port())
    values = {"/etc/ssl/app/fullchain.pem": str(cert), "/etc/ssl/app/key.pem": str(key)}
    for role, places in REPLICAS.items():
        given = [f"127.0.0.1:{port}" for port in ports.get(role, ())]
        first, further = given[: len(places)], given[len(places) :]
        if further:  # nginx only
            first[-1] = f" {NGINX_FAILS};\n    server ".join([first[-1], *further])
        first += [f"127.0.0.1:{nowhere}"] * (len(places) - len(first))
        values |= {f"127.0.0.1:{place}": address for place, address in zip(places, first, strict=True)}
    port, plain = free_port(), free_port()
    command = PROXIES[name](folder, values, port, plain)
    proxy = Proxied(port, plain, ssl.create_default_context(cafile=str(authority.file)), command, folder)
    proxy.start()
    paths = {"auth": (API, "/auth/v1/me"), "platform": (API, "/platform/v1/queues"), "service": (SERVICE, "/")}
    try:

        def serving() -> bool:
            assert proxy.process is not None
            assert proxy.process.poll() is None, proxy.log.read_text()
            try:
                answers = [proxy.get(path, host) for host, path in (paths[role] for role in ports)]
            except httpx.HTTPError:
                return False
            return all(answer.status_code in (200, 401) for answer in answers)

        eventually(serving)
        yield proxy
    finally:
        if proxy.process is not None:
            proxy.process.terminate()
            proxy.process.wait(10)
