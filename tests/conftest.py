"""Fixtures. Asking for `database` is what makes a test an integration test."""

import compileall
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest
from argon2 import PasswordHasher
from xdist.scheduler import LoadFileScheduling

from app.kernel.config import load
from app.kernel.db.devserver.embedded import embedded_binaries
from app.kernel.process import Process
from app.kernel.telemetry import redact
from app.processes import new_process, sections
from tests.support.leaks import WATCH, watched
from tests.support.project import ROOT, Project, Running

# what a script runs in the background has these signals ignored, and so would every process that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

_LONG = {
    "test_agent.py",
    "test_blocks.py",
    "test_browser.py",
    "test_chaos.py",
    "test_cli.py",
    "test_disaster_recovery.py",
    "test_drill.py",
    "test_embedded.py",
    "test_environments.py",
    "test_extending.py",
    "test_fleet.py",
    "test_image.py",
    "test_openapi.py",
    "test_outages.py",
    "test_pgbouncer.py",
    "test_read_only.py",
    "test_restores.py",
    "test_streams.py",
    "test_workers.py",
}
if TYPE_CHECKING:
    from tests.support.nats import NatsServer
    from tests.support.seaweed import Seaweed

_SHM, _ROOM_BYTES = Path("/dev/shm"), 8 * 2**30
SUPERUSER = ("root", "correct horse battery staple")
_SUPERUSER = """
    INSERT INTO auth.actors (id, type, username, username_key, password_hash, is_superuser)
    VALUES (kernel.uuid7(), 'admin', %s, %s, %s, true)
    ON CONFLICT DO NOTHING
"""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return more workers than cores: most tests wait for processes, clocks and disks about half of their time."""
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Let one worker run the tests of a file, in their order: they share fixtures."""
    config.option.loadscopereorder = False  # the long ones first, not the many
    return LoadFileScheduling(config, log)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the code once: the many processes that tests start, and their copies, do not store what they compile."""
    if not hasattr(session.config, "workerinput"):
        compileall.compile_dir(ROOT / "app", quiet=2, workers=0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take a minute, so that no worker waits long at the end."""
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope="session", autouse=True)
def watched_httpx() -> Iterator[None]:
    """Every request of every test is watched for the secrets in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.Client, "send", watched(httpx.Client.send))
        yield


@pytest.fixture(autouse=True)
def own_secrets() -> Iterator[None]:
    """What a test lets the process redact, often a plain word, is not redacted in the next one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redact, "_known", [*redact._known])
        redact._short.cache_clear()
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """Fail a test after which one of its secrets stands where it must not."""
    WATCH.search_live()
    try:
        return (yield)
    finally:
        WATCH.search_written()
        if leaks := WATCH.end():
            pytest.fail("secrets leaked: " + "; ".join(leaks), pytrace=False)


@dataclass
class PostgresServer:
    """A server of our own, held by a process of its own."""

    folder: Path
    host: str
    port: int
    user: str

    def conninfo(self, db: str = "app") -> str:
        return f"host={self.host} port={self.port} user={self.user} dbname={db}"

    def postmaster(self) -> int:
        """Return the process id of the postmaster."""
        found = next(self.folder.rglob("postmaster.pid"))
        return int(found.read_text().splitlines()[0])


def start_server(folder: Path, *options: str) -> tuple[subprocess.Popen[str], PostgresServer]:
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.support.server", str(folder), *options],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    line = holder.stdout.readline()
    assert line, "the test server did not start"
    started = PostgresServer(folder, **json.loads(line))
    WATCH.follow(next(folder.rglob("server.log")))
    return holder, started


def stop_server(holder: subprocess.Popen[str]) -> None:
    holder.communicate(timeout=20)


@contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """Give a folder in memory, which goes away afterwards, or the given one when memory has not enough room."""
    has_room = (
        _SHM.is_dir() and not os.statvfs(_SHM).f_flag & os.ST_NOEXEC and shutil.disk_usage(_SHM).free > _ROOM_BYTES
    )
    with TemporaryDirectory(prefix="app-tests-", dir=_SHM) if has_room else nullcontext(otherwise) as folder:
        try:
            yield Path(folder)
        finally:
            WATCH.search_written()  # while it is there


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server shared by the tests of one worker, in memory if there is room: a database is a thousand files."""
    with in_memory(tmp_path_factory.mktemp("pg")) as folder:
        holder, server = start_server(folder)
        yield server
        stop_server(holder)


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator["NatsServer"]:
    """A NATS server shared by the tests of one worker."""
    from tests.support.nats import nats_server

    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Seaweed"]:
    """S3 storage shared by the tests of one worker."""
    from tests.support.seaweed import seaweed_server

    with seaweed_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


class Holder:
    """Holds a server of a test's own, which the test may stop, start, freeze or kill."""

    def __init__(self, folder: Path) -> None:
        self.process, self.server = start_server(folder)

    def stop(self) -> None:
        stop_server(self.process)

    def start(self) -> None:
        self.process, self.server = start_server(self.server.folder)


@pytest.fixture
def own_holder(tmp_path: Path) -> Iterator[Holder]:
    """The holder of `own_postgres`."""
    with in_memory(tmp_path) as folder:
        holder = Holder(folder / "pg")
        yield holder
        holder.stop()


@pytest.fixture
def own_postgres(own_holder: Holder) -> PostgresServer:
    """A server that a test may freeze or kill."""
    return own_holder.server


@dataclass
class TestDatabase:
    """A database of a server."""

    __test__ = False
    server: PostgresServer
    name: str

    @property
    def conninfo(self) -> str:
        return self.server.conninfo(self.name)

    @property
    def env(self) -> dict[str, str]:
        return {
            "POSTGRES_HOST": self.server.host,
            "POSTGRES_PORT": str(self.server.port),
            "POSTGRES_USER": self.server.user,
            "POSTGRES_DB": self.name,
        }

    def all(self, sql: str, *parameters: object) -> list[tuple]:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            return connection.execute(sql, parameters).fetchall()

    def run(self, sql: str, *parameters: object) -> None:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            connection.execute(sql, parameters)

    def copy(self) -> "TestDatabase":
        """Return a new database with what this one has; nobody may be connected to this one."""
        return create_database(self.server, self.name)

    def drop(self) -> None:
        with psycopg.connect(self.server.conninfo(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {self.name} WITH (FORCE)")


def create_database(server: PostgresServer, template: str = "template1") -> TestDatabase:
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        # copying the files costs less than writing every page to WAL, as the default does
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    return TestDatabase(server, name)


@pytest.fixture(scope="session")
def template(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> TestDatabase:
    """A database with the current schema, to copy: that takes a tenth of the time of the migrations."""
    made = create_database(postgres)
    done = Project(ROOT, tmp_path_factory.mktemp("template"), dict(made.env)).app("migrate", "up")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def database(template: TestDatabase) -> Iterator[TestDatabase]:
    """A database with the current schema and no rows, on the shared server."""
    created = template.copy()
    yield created
    created.drop()


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[TestDatabase]:
    """A database without a schema, on the shared server."""
    created = create_database(postgres)
    yield created
    created.drop()


@pytest.fixture
def own_database(own_postgres: PostgresServer) -> TestDatabase:
    """An empty database on a server that the test may freeze or kill."""
    return create_database(own_postgres)


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Project]:
    """The project without a database: for commands that need none."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    project = Project(ROOT, scratch)
    yield project
    project.end()


@pytest.fixture
def project(cli: Project, database: TestDatabase) -> Project:
    """The project on a database with the current schema."""
    cli.env |= database.env
    return cli


@pytest.fixture
def unmigrated(cli: Project, empty_database: TestDatabase) -> Project:
    """The project on a database without a schema."""
    cli.env |= empty_database.env
    return cli


@pytest.fixture
async def process(database: TestDatabase) -> AsyncIterator[Process]:
    """A process in the loop of the test, with what all modules provide, on a database with the current schema."""
    settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env})
    async with new_process("run-test", settings).opened() as opened:
        yield opened


@cache
def _hashed(password: str) -> str:
    return PasswordHasher().hash(password)


def make_superuser(project: Project) -> None:
    """Make the superuser: on the shared server by SQL, as the command takes half a second; elsewhere by the command."""
    username, password = SUPERUSER
    if project.env.get("POSTGRES_HOST", "").startswith("/"):
        names = {"host": "POSTGRES_HOST", "port": "POSTGRES_PORT", "user": "POSTGRES_USER", "dbname": "POSTGRES_DB"}
        with psycopg.connect(autocommit=True, **{key: project.env[name] for key, name in names.items()}) as connection:
            connection.execute(_SUPERUSER, (username, username, _hashed(password)))
        return
    made = project.app("auth", "create-superuser", "--username", username, "--password-stdin", stdin=password)
    assert made.returncode == 0, made.stderr


def log_in(project: Project, process: Running) -> httpx.Client:
    """Make the superuser; return a client that is signed in to the process as it."""
    username, password = SUPERUSER
    url = process.ready()
    make_superuser(project)
    client = project.client(url)
    answer = client.post("/auth/v1/login", json={"username": username, "password": password})
    assert answer.status_code == 200, answer.text
    client.headers["Authorization"] = f"Bearer {answer.json()['session']['access_token']}"
    return client


def program(name: str) -> str:
    """Return the path of a program: on PATH, of Debian, or of a wheel. Skips the test when there is none."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", str(Path(sys.executable).parent)]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        required(name)
    return str(found)


def postgres_binaries() -> Path:
    """Return the folder of PostgreSQL 15 of Debian, or of 16 of the wheel, which has no TLS."""
    wheel = embedded_binaries()
    found = [Path("/usr/lib/postgresql/15/bin"), *([wheel.parent.with_name("pginstall") / "bin"] if wheel else [])]
    binaries = next((folder for folder in found if (folder / "postgres").exists()), None)
    if binaries is None:
        required("PostgreSQL 15")
    assert binaries is not None
    return binaries


def required(name: str) -> None:
    """Skip a test whose server, or permission, is missing on this machine; under CI it fails instead."""
    message = f"this machine has no {name}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
