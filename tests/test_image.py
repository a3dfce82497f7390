"""The image: built from the Containerfile on Debian, then run as a runtime would, with as little as possible allowed.

One test, because the build takes most of the time.
"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app import ROOT
from app.kernel.product import VERSION
from app.processes import PROCESSES
from tests.conftest import program, required
from tests.support.container import Container, Image, Memory, first, status
from tests.support.debian import DebianServer, debian_server, installed
from tests.support.project import Running, eventually

MEMORY = 128 * 1024 * 1024
PASSWORD = "correct horse battery staple"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_EVERY_HELP = """
import io, sys
from contextlib import redirect_stdout
from app.cli import command, main
import click
failed = count = 0
def visit(path, node, context):
    global failed, count
    out = io.StringIO()
    sys.argv = ["app", *path, "--help"]
    try:
        with redirect_stdout(out):
            main()
    except SystemExit as ended:
        count += 1
        if ended.code or not out.getvalue().startswith("Usage: app"):
            print(path, ended.code)
            failed = 1
    for name in getattr(node, "commands", {}):
        if path or name in root.commands:
            _, found, _ = node.resolve_command(context, [name])
            visit([*path, name], found, click.Context(found, info_name=name, parent=context))
root = command()
visit([], root, click.Context(root, info_name="app"))
print(count)
sys.exit(failed)
"""
_STALE = """
import importlib.util, sys, struct, pathlib
import app.kernel.process, app.kernel.http.server, app.kernel.queue.consumer, psycopg, hypercorn.config, typer
for name, module in list(sys.modules.items()):
    source = getattr(module, "__file__", None) or ""
    if source.endswith(".py"):
        cached = pathlib.Path(importlib.util.cache_from_source(source))
        flags, made = struct.unpack("<II", cached.read_bytes()[4:12]) if cached.exists() else (0, None)
        if not flags and made != int(pathlib.Path(source).stat().st_mtime):
            print(source)
"""
_INSTALLED = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"


def base(image: Image, folder: Path) -> None:
    """Make the image `base`: Debian with Python, and nothing else."""
    unneeded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    options = ["--variant=minbase", "--dpkgopt=force-unsafe-io", *unneeded]
    packages = "--include=python3,python3-venv,ca-certificates"
    tar = folder / "base.tar"
    subprocess.run(
        [program("mmdebstrap"), "-q", *options, packages, "bookworm", str(tar), "http://deb.debian.org/debian"],
        check=True,
        timeout=600,
        capture_output=True,
    )
    made = image.buildah("from", "scratch")
    image.buildah("add", "-q", made, tar, "/")
    tar.unlink()
    image.buildah("copy", "-q", made, CERTIFICATES, CERTIFICATES)  # of where the packages come from here
    image.buildah("config", "--env", f"PIP_CERT={CERTIFICATES}", made)
    image.buildah("commit", "-q", "--rm", made, "base")


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    if os.geteuid() != 0:
        required("a build as root")
    program("buildah")
    made = Image(tmp_path / "store")
    try:
        base(made, tmp_path)
        arguments = {
            "BASE": "localhost/base",
            "VERSION": VERSION,
            "REVISION": "0" * 40,
            "SOURCE": "https://git.example",
        }
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        made.buildah("build", "-q", "--isolation", "chroot", "--format", "docker", *given, "-t", made.name, ROOT)
        yield made
    finally:
        made.buildah("rm", "--all")
        made.buildah("rmi", "--all", "--force")


@pytest.fixture
def server() -> Iterator[DebianServer]:
    binaries = installed(15)
    if binaries is None:
        required("PostgreSQL 15")
    assert binaries is not None
    with debian_server(binaries) as made:
        yield made


@pytest.fixture
def container(image: Image, server: DebianServer, tmp_path: Path) -> Iterator[Container]:
    root = image.buildah("mount", image.buildah("from", image.name))
    secrets = {"AUTH_MASTER_SECRET": os.urandom(32).hex(), "AUTH_ISSUER": "https://auth.example.com"}
    env = {**server.env, "POSTGRES_SSL": "disable", **secrets, "QUEUE_POLL_INTERVAL": "100ms"}
    made = Container(Path(root), image.config(), env, tmp_path, MEMORY)
    yield made
    made.end()


def test_the_image_runs_every_command_and_every_process_with_as_little_as_possible(
    image: Image, container: Container
) -> None:
    check_configuration(container.config)
    check_contents(container)
    check_commands(container)
    started = {name: container.start(name, "--port", "0", env={"OPERATIONS_PORT": "0"}) for name in PROCESSES}
    try:
        check_processes(container, started)
    except BaseException:
        print("".join(process.said() for process in started.values()))
        raise


def test_the_containerfile_has_no_findings_and_its_base_is_pinned() -> None:
    file = ROOT / "Containerfile"
    done = subprocess.run([program("hadolint"), str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    bases = re.findall(r"(?m)^(?:ARG BASE=|FROM )(\S+)", file.read_text())
    assert re.fullmatch(r"docker\.io/library/python:3\.13-slim-trixie@sha256:[0-9a-f]{64}", bases.pop(0))
    assert set(bases) == {"${BASE}", "app"}  # the image itself is a stage, so that the agent's adds to it
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "**"  # what is not named is left out
    copied = {word for line in re.findall(r"(?m)^COPY (?!--)(.+)", file.read_text()) for word in line.split()[:-1]}
    assert copied == {line[1:] for line in ignored if line.startswith("!")}


def check_configuration(config: dict) -> None:
    assert config["User"] == "10001:10001"
    assert set(config["ExposedPorts"]) == {"8080/tcp", "8081/tcp"}
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"] == ["app"]
    assert config["Healthcheck"]["Test"] == ["CMD", "app", "health"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert (labels["version"], labels["revision"], labels["licenses"]) == (VERSION, "0" * 40, "MIT")
    assert (labels["source"], labels["base.name"]) == ("https://git.example", "localhost/base")


def check_contents(container: Container) -> None:
    find = ["find", "/", "-xdev"]
    unwanted = [r"-name", "pip*", "-path", "*/bin/*"], ["-name", "*gcc*", "-path", "*/bin/*"], ["-name", "ensurepip"]
    for tests in (*unwanted, ["-type", "f", "-perm", "/6000"], ["-path", "/srv/app/tests"], ["-name", ".secrets*"]):
        assert container.run(*find, *tests).stdout == "", tests
    # nothing in it can be changed by who runs it: what is writable is a file system in memory
    assert container.run(*find, "-writable", "-type", "f").stdout == ""
    assert container.run("sh", "-c", "touch /srv/app/new").returncode != 0
    assert container.run("python3", "-c", _STALE).stdout == "", "modules that are compiled at each start"
    packages = json.loads(container.run("python3", "-c", _INSTALLED).stdout)
    listed = json.loads((container.root / "venv/sbom.cdx.json").read_text())
    assert listed["bomFormat"] == "CycloneDX"
    assert {part["name"]: part["version"] for part in listed["components"]} == packages
    assert {"opentelemetry-exporter-otlp-proto-grpc", "hvac", "boto3"} <= set(packages)
    assert "pip" not in packages


def check_commands(container: Container) -> None:
    done = container.run("python3", "-c", _EVERY_HELP)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 50
    assert container.app("--version") == f"{VERSION}\n"
    container.app("config", "validate")
    container.app("migrate", "up")
    container.app("auth", "create-superuser", "--username", "root", "--password-stdin", stdin=PASSWORD)
    assert json.loads(container.app("queues", "limit", "default", "5", "--json"))
    assert container.app("db", "shell", "-c", "SELECT 6 * 7 AS answer").split()[2] == "42"
    done = container.run(*container.config["Entrypoint"], "health")
    assert done.returncode == 69  # nothing runs


def check_processes(container: Container, started: dict[str, Running]) -> None:
    probes = {name: listener(process, "operations") for name, process in started.items()}
    urls = {name: listener(started[name], "http") for name in ("run-auth-http", "run-all-in-one", "run-platform-http")}
    for name, process in started.items():
        eventually(lambda url=probes[name]: httpx.get(f"{url}/ready").status_code == 200)
        about = status(first(process))
        assert set(about["Uid"].split()) == {"10001"}, name
        assert {int(about[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}, name
        assert about["NSpid"].split()[1] == "1", name
        done = container.inside(process, *container.config["Healthcheck"]["Test"][1:])
        port = probes[name].rpartition(":")[2]
        assert (done.returncode, done.stdout) == (0, f"{name} on port {port}: ok\n"), done.stderr
    with Memory({name: first(process) for name, process in started.items()}) as memory:
        for api in ("run-auth-http", "run-all-in-one"):
            use(urls[api], urls["run-platform-http"])
        stop(started["run-all-in-one"])  # so that its job is the consumer's
        container.app("schedules", "trigger", "platform.heartbeat")
        ran = 'jobs_total{outcome="done",task="platform.heartbeat"}'
        eventually(lambda: ran in httpx.get(f"{probes['run-event-consumer']}/metrics").text)
    for process in list(started.values())[1:]:
        stop(process)
    print("MiB:", {name: round(peak / 2**20) for name, peak in memory.peaks.items()})
    assert {name: peak for name, peak in memory.peaks.items() if not 0 < peak < MEMORY} == {}


def stop(process: Running) -> None:
    os.kill(first(process), signal.SIGTERM)
    assert process.wait() == 0, process.said()


def listener(process: Running, name: str) -> str:
    """Return the URL of a listener, once it is there."""

    def found() -> str | None:
        assert process.popen.poll() is None, process.said()
        return next((line["url"] for line in process.logs() if line.get("listener") == name), None)

    return eventually(found)


def use(auth: str, platform: str) -> None:
    """Sign in many times at once, and ask for what an operator looks at."""

    def sign_in(_: int) -> str:
        answer = httpx.post(f"{auth}/auth/v1/login", json={"username": "root", "password": PASSWORD}, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["session"]["access_token"]

    with ThreadPoolExecutor(8) as threads:
        token = list(threads.map(sign_in, range(8)))[-1]
    headers = {"authorization": f"Bearer {token}"}
    for url in [f"{auth}/auth/v1/me", *(f"{platform}/platform/v1/{name}" for name in ("jobs", "queues", "audit"))]:
        assert httpx.get(url, headers=headers).status_code == 200
