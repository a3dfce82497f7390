"""NATS servers of the tests: one, or three in a cluster, with JetStream."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import program
from tests.support.namespaces import Namespace


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


class NatsServer:
    """A nats-server with JetStream, which a test may kill and start again."""

    def __init__(
        self, folder: Path, config: str = "", port: int = 0, name: str = "one", place: Namespace | None = None
    ) -> None:
        self.folder = folder
        self.name = name
        self.place = place
        self.host = place.host if place else "127.0.0.1"
        self.port = port or free_ports(1)[0]
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        jetstream = {"store_dir": str(folder / "store"), "max_mem": 64 * 2**20, "max_file": 2**30}
        base = {"server_name": name, "host": self.host, "port": self.port, "jetstream": jetstream}
        self.config = folder / "nats.conf"
        self.config.write_text(json.dumps(base)[1:-1] + "\n" + config)
        self.start()

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    def start(self) -> None:
        with (self.folder / "nats.log").open("ab") as log:
            command = [*(self.place.command if self.place else ()), program("nats-server"), "-c", str(self.config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 15
        while True:
            try:
                with socket.create_connection((self.host, self.port), timeout=1) as sock:
                    if sock.recv(4) == b"INFO":
                        return
            except OSError:
                pass
            assert self.process.poll() is None, (self.folder / "nats.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "nats-server did not start"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(timeout=15)
            self.process = None


@contextmanager
def nats_server(folder: Path, config: str = "") -> Iterator[NatsServer]:
    server = NatsServer(folder, config)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def nats_cluster(folder: Path, size: int = 3, places: Sequence[Namespace] = ()) -> Iterator[list[NatsServer]]:
    """Run a cluster, on this machine or with each server in a network namespace."""
    ports = free_ports(2 * size)
    hosts = [place.host for place in places] or ["127.0.0.1"] * size
    clients, routes = ports[:size], [f"{host}:{port}" for host, port in zip(hosts, ports[size:], strict=True)]
    servers: list[NatsServer] = []
    try:
        for number, (port, route) in enumerate(zip(clients, routes, strict=True)):
            cluster = {
                "name": "test",
                "listen": route,
                "routes": [f"nats://{r}" for r in routes],
            }
            config, place = f"cluster: {json.dumps(cluster)}\n", places[number] if places else None
            servers.append(NatsServer(folder / str(number), config, port, f"node{number}", place))
        yield servers
    finally:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    with nats_server(Path(sys.argv[1])) as started:
        print(started.url, flush=True)
        signal.pause()
