"""NATS servers of the tests: one, or three in a cluster, with JetStream."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import program


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

    def __init__(self, folder: Path, config: str = "", port: int = 0, name: str = "one") -> None:
        self.folder = folder
        self.port = port or free_ports(1)[0]
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        jetstream = {"store_dir": str(folder / "store"), "max_mem": 64 * 2**20, "max_file": 2**30}
        base = {"server_name": name, "host": "127.0.0.1", "port": self.port, "jetstream": jetstream}
        self.config = folder / "nats.conf"
        self.config.write_text(json.dumps(base)[1:-1] + "\n" + config)
        self.start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        with (self.folder / "nats.log").open("ab") as log:
            self.process = subprocess.Popen([program("nats-server"), "-c", str(self.config)], stdout=log, stderr=log)
        deadline = time.monotonic() + 15
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as sock:
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
def nats_cluster(folder: Path, size: int = 3) -> Iterator[list[NatsServer]]:
    ports = free_ports(2 * size)
    clients, routes = ports[:size], ports[size:]
    servers: list[NatsServer] = []
    try:
        for number, (port, route) in enumerate(zip(clients, routes, strict=True)):
            cluster = {
                "name": "test",
                "listen": f"127.0.0.1:{route}",
                "routes": [f"nats://127.0.0.1:{r}" for r in routes],
            }
            servers.append(NatsServer(folder / str(number), f"cluster: {json.dumps(cluster)}\n", port, f"node{number}"))
        yield servers
    finally:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    with nats_server(Path(sys.argv[1])) as started:
        print(started.url, flush=True)
        signal.pause()
