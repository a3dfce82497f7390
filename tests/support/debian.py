"""A PostgreSQL server as operators run one: from given binaries, over TCP with a password, with or without TLS."""

import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import in_memory
from tests.support.leaks import WATCH
from tests.support.project import eventually

UNPRIVILEGED = 65534


def installed(version: int) -> Path | None:
    """Return the folder of Debian's binaries, or None."""
    found = Path(f"/usr/lib/postgresql/{version}/bin")
    return found if (found / "postgres").exists() else None


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def as_unprivileged(*, reads_all: bool = False) -> list[str]:
    """Return what to put before a command: PostgreSQL refuses to run as root. It ends when the test does.

    `reads_all`: it may read what only root may, such as our Python.
    """
    become = [f"--reuid={UNPRIVILEGED}", f"--regid={UNPRIVILEGED}", "--clear-groups"] if os.geteuid() == 0 else []
    reads = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"] if become and reads_all else []
    return ["setpriv", *become, *reads, "--pdeathsig=INT", "--"]


@dataclass
class DebianServer:
    """A server on a port and a data folder of its own."""

    bin_dir: Path
    folder: Path
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: f"pw-{secrets.token_hex(12)}", repr=False)
    options: dict[str, str] = field(default_factory=lambda: {"fsync": "off"})
    process: subprocess.Popen[bytes] | None = None
    segment_mb: int = 16
    reads_all: bool = False

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def env(self) -> dict[str, str]:
        """Return the settings of a project that uses it."""
        return {
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(self.port),
            "POSTGRES_USER": "app",
            "POSTGRES_PASSWORD": self.password,
            "POSTGRES_DB": "app",
        }

    def connect(self, db: str = "postgres") -> psycopg.Connection:
        """Connect as the superuser over the socket."""
        return psycopg.connect(host=str(self.folder), port=self.port, user="admin", dbname=db, autocommit=True)

    def all(self, sql: str, db: str = "app") -> list[tuple]:
        with self.connect(db) as connection:
            return connection.execute(sql).fetchall()

    def run(self, sql: str, db: str = "app") -> None:
        with self.connect(db) as connection:
            connection.execute(sql)

    def _tool(self, *command: str) -> None:
        subprocess.run(
            [*as_unprivileged(), str(self.bin_dir / command[0]), *command[1:]],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"},
            check=True,
            capture_output=True,
            timeout=60,
        )

    def create(self) -> None:
        """Make the data folder with `admin` (local only) and `app`, who owns the database `app`."""
        how = ("-U", "admin", "-E", "UTF8", "--no-sync", "--auth-local=trust", f"--wal-segsize={self.segment_mb}")
        self._tool("initdb", "-D", str(self.data), "--data-checksums", *how)
        hba = "local all admin trust\nhost all app 127.0.0.1/32 scram-sha-256\nhost all app ::1/128 scram-sha-256\n"
        (self.data / "pg_hba.conf").write_text(hba)
        self.start()
        self.run(f"CREATE ROLE app LOGIN PASSWORD '{self.password}'", "postgres")
        self.run("CREATE DATABASE app OWNER app", "postgres")

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        options = {
            "port": self.port,
            "listen_addresses": "localhost",
            "unix_socket_directories": self.folder,
            "password_encryption": "scram-sha-256",
            **self.options,
        }
        WATCH.follow(self.folder / "server.log")
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *as_unprivileged(reads_all=self.reads_all),
                    str(self.bin_dir / "postgres"),
                    *("-D", str(self.data)),
                    *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
                ],
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"},
                stdout=log,
                stderr=log,
            )

        def answers() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "server.log").read_text())
            with suppress(psycopg.OperationalError), self.connect("postgres"):
                return True
            return False

        eventually(answers)

    def kill(self) -> None:
        """SIGKILL to all its processes at once, as when the machine fails."""
        assert self.process is not None
        postmaster = psutil.Process(self.process.pid)
        for process in [postmaster, *postmaster.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(20)
        self.process = None

    def replicate(self, standby: "DebianServer") -> None:
        """Copy it to a standby, without data so far, that follows it, and start that."""
        access = self.data / "pg_hba.conf"
        if "replication" not in access.read_text():
            access.write_text(f"local replication admin trust\n{access.read_text()}")
            self.run("SELECT pg_reload_conf()", "postgres")
        standby.password = self.password
        standby._tool(
            *("pg_basebackup", "-h", str(self.folder), "-p", str(self.port), "-U", "admin"),
            *("-D", str(standby.data), "-R", "-X", "stream", "-c", "fast", "--no-sync"),
        )
        standby.start()

    def promote(self) -> None:
        """Make a standby accept writes."""
        self._tool("pg_ctl", "promote", "-D", str(self.data), "-w")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)
            self.process = None

    def certify(self, authority: "Authority", *names: str, days: float = 1) -> None:
        """Turn TLS on, with a certificate of the authority for the names, which ends after some days."""
        key, certificate = authority.issue(*names, days=days)
        for name, content in (("server.key", key), ("server.crt", certificate)):
            path = self.data / name
            path.write_bytes(content)
            path.chmod(0o600)
            if os.geteuid() == 0:
                os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
        self.set_ssl("on")

    def set_ssl(self, state: str) -> None:
        """Turn TLS `on` or `off`."""
        self.run(f"ALTER SYSTEM SET ssl = {state}", "postgres")
        self.run("SELECT pg_reload_conf()", "postgres")
        eventually(lambda: self.all("SHOW ssl", "postgres") == [(state,)])


@contextmanager
def debian_server(bin_dir: Path, **options: str) -> Iterator[DebianServer]:
    """Run a server with an empty database, in a folder that an unprivileged user can reach; both go away afterwards."""
    with no_server(bin_dir, **options) as server:
        server.create()
        yield server


@contextmanager
def no_server(bin_dir: Path, **options: str) -> Iterator[DebianServer]:
    """Give a server that has no data so far; its folder goes away afterwards."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as on_disk, in_memory(Path(on_disk)) as folder:
        if os.geteuid() == 0:
            os.chown(folder, UNPRIVILEGED, UNPRIVILEGED)
        server = DebianServer(bin_dir, folder, options=options or {"fsync": "off"})
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def with_standby(bin_dir: Path, **options: str) -> Iterator[tuple[DebianServer, DebianServer]]:
    """Run a primary and a standby that follows it."""
    options = {"fsync": "off", "wal_level": "replica", "hot_standby": "on", **options}
    with debian_server(bin_dir, **options) as primary, no_server(bin_dir, **options) as standby:
        primary.replicate(standby)
        yield primary, standby


class Authority:
    """A certificate authority."""

    def __init__(self, folder: Path, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: float = 90
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=30))
            .not_valid_after(now + timedelta(days=days))
        )

    def issue(self, *names: str, days: float = 1) -> tuple[bytes, bytes]:
        """Return a key and a certificate for the names and addresses, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = []
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        certificate = (
            self._builder(subject, key, days)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return (
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            certificate.public_bytes(serialization.Encoding.PEM),
        )
