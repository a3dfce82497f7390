"""The Compose files: what they name exists, nothing is public by accident, and every command starts."""

import re
import shutil
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.kernel.config import HttpServerSettings, OperationsSettings, PostgresSettings, ProcessSettings, load
from app.kernel.config.settings import schema
from app.processes import PROCESSES, sections
from tests.conftest import TestDatabase, program
from tests.support.nats import NatsServer, free_ports
from tests.support.project import ROOT, Project, eventually
from tests.support.valkey import Valkey, servers
from tests.test_cli import parse

FILES = {"small": ROOT / "compose.yaml", "fleet": ROOT / "deploy" / "compose" / "compose.yaml"}
VARIABLES = {setting.variable for section in sections() for setting in schema(section)}
SECRET = "7f2c9e1ab04d8835f61c2b9e07ad4418"
each_file = pytest.mark.parametrize("name", FILES)


def compose(name: str) -> dict[str, Any]:
    return yaml.safe_load(FILES[name].read_text())


def ours(name: str) -> dict[str, dict[str, Any]]:
    """Return the services of our image."""
    return {key: one for key, one in compose(name)["services"].items() if one["image"].startswith("${APP_")}


def environment(service: dict[str, Any], folder: Path) -> dict[str, str]:
    """Return the variables of a service; its secrets are files in a folder."""
    found: dict[str, str] = {}
    for variable, text in service["environment"].items():
        value = "https://app.example.com" if text.startswith("${AUTH_ISSUER:?") else text
        assert "$" not in value
        if variable.endswith("_FILE"):
            secret = value.removeprefix("/run/secrets/")
            assert secret in service["secrets"]
            file = folder / secret
            if not file.exists():  # a process that was started may be reading it
                file.write_text(SECRET)
            value = str(file)
        found[variable] = value
    return found


@each_file
def test_what_a_file_names_exists(name: str) -> None:
    content = compose(name)
    assert {re.sub(r"^x-.*", "", key) for key in content} - {""} == {
        "name",
        "services",
        "networks",
        "volumes",
        "secrets",
    }
    for key, service in content["services"].items():
        assert re.fullmatch(r"\$\{APP_(AGENT_)?IMAGE:-app(-agent)?\}|[a-z.]+/[a-z/-]+:[\w.-]+", service["image"]), key
        assert set(service.get("secrets", [])) <= set(content["secrets"])
        assert set(service["networks"]) <= set(content["networks"])
        assert set(service.get("depends_on", [])) <= set(content["services"])
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in content["volumes"] or (FILES[name].parent / source).exists(), source
        assert "mem_limit" in service
        assert service["restart"] in {"unless-stopped", "on-failure"}
    for secret in content["secrets"].values():
        assert (FILES[name].parent / secret["file"]).resolve().parent == ROOT / "secrets"  # which git ignores
    ignored = subprocess.run(["git", "check-ignore", "-q", "secrets/one"], cwd=ROOT, check=False)
    assert ignored.returncode == 0 or not (ROOT / ".git").exists()


@each_file
def test_only_the_proxy_is_public_and_the_database_is_not_reachable_from_outside(name: str) -> None:
    content = compose(name)
    published = {key: port for key, one in content["services"].items() for port in one.get("ports", [])}
    assert {key for key, port in published.items() if not port.startswith("127.0.0.1:")} <= {"proxy"}
    assert content["networks"]["data"] == {"internal": True}
    assert content["services"]["postgres"]["networks"] == ["data"]
    assert "data" not in content["services"].get("proxy", {"networks": []})["networks"]


def test_only_the_address_of_the_proxy_is_trusted_and_no_other_container_gets_it() -> None:
    content = compose("fleet")
    trusted = content["x-environment"]["HTTP_SERVER_TRUSTED_PROXIES"]
    assert content["services"]["proxy"]["networks"]["front"]["ipv4_address"] == trusted
    [pool] = content["networks"]["front"]["ipam"]["config"]
    assert ip_address(trusted) in ip_network(pool["subnet"])
    assert ip_address(trusted) not in ip_network(pool["ip_range"])


@each_file
def test_our_services_have_settings_that_exist_and_as_little_as_possible(name: str, tmp_path: Path) -> None:
    found = ours(name)
    roles = {service["command"][0] for service in found.values()} - {"migrate"}
    assert roles == ({"run-all-in-one"} if name == "small" else set(PROCESSES) - {"run-all-in-one"})
    services = compose(name)["services"]
    for key, service in found.items():
        given = environment(service, tmp_path)
        assert {variable.removesuffix("_FILE") for variable in given} <= VARIABLES | {"APP_ENV"}
        settings = load(ROOT, sections(), given)
        limits, database = settings[ProcessSettings], settings[PostgresSettings]
        assert service["stop_grace_period"] == f"{limits.drain_delay + limits.grace + 15:g}s"
        assert {database.host, database.direct_host} - {""} <= set(services)
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "10001:10001"
        if key == "migrate":
            assert parse(service["command"]) == "migrate up"
        else:
            assert service["healthcheck"]["test"] == ["CMD", "app", "health", "--ready"]
            assert name == "small" or database.migrate is False
            assert service["depends_on"] == (
                {"postgres": {"condition": "service_healthy"}}
                if name == "small"
                else {
                    "migrate": {"condition": "service_completed_successfully"},
                    "pgbouncer": {"condition": "service_started"},
                }
            )


def test_every_command_starts_with_its_environment(
    project: Project, database: TestDatabase, nats: NatsServer, tmp_path: Path
) -> None:
    here = {key: value for key, value in project.env.items() if key != "POSTGRES_PASSWORD"}
    local = {**here, "POSTGRES_DIRECT_HOST": "", "POSTGRES_DIRECT_PORT": "0", "OPERATIONS_PORT": "0"}
    project.env = {}
    local["NATS_URL"] = nats.url
    with servers() as valkeys:
        valkeys.append(Valkey(tmp_path / "valkey", compose("fleet")["services"]["valkey"]["command"][1:]))
        local["REDIS_URL"] = valkeys[0].url
        migrate = environment(ours("fleet")["migrate"], tmp_path) | local
        assert project.app("migrate", "up", env=migrate).returncode == 0
        started = [
            project.start(*service["command"], env=environment(service, tmp_path) | local)
            for name in FILES
            for key, service in ours(name).items()
            if key != "migrate"
        ]
        for process in started:
            assert httpx.get(f"{process.ready()}/ready").json() == {"status": "ready"}
        assert valkeys[0].ask("CONFIG", "GET", "maxmemory-policy") == ["maxmemory-policy", "allkeys-lru"]
        assert [process.stop() for process in started] == [0] * len(PROCESSES)


def test_nats_of_the_fleet_accepts_its_configuration_and_answers_its_health_check(tmp_path: Path) -> None:
    fleet = compose("fleet")["services"]["nats"]
    config = (FILES["fleet"].parent / "nats.conf").read_text()
    client, monitor = free_ports(2)
    config = config.replace("0.0.0.0:4222", f"127.0.0.1:{client}").replace(":8222", f":{monitor}")
    config = config.replace("/data", str(tmp_path / "data"))
    (tmp_path / "nats.conf").write_text(config)
    server = subprocess.Popen(
        [program("nats-server"), *fleet["command"][:-1], str(tmp_path / "nats.conf")], stderr=subprocess.DEVNULL
    )
    try:
        path = fleet["healthcheck"]["test"][-1].partition(":8222")[2]
        assert eventually(lambda: _health(f"http://127.0.0.1:{monitor}{path}")) == {"status": "ok"}
    finally:
        server.kill()
        server.wait()


def _health(url: str) -> Any:
    try:
        return httpx.get(url).json()
    except httpx.HTTPError:
        return None


def test_the_proxy_prometheus_and_pgbouncer_of_the_fleet_reach_what_there_is(tmp_path: Path) -> None:
    folder = FILES["fleet"].parent
    services = compose("fleet")["services"]
    settings = load(ROOT, sections(), environment(ours("fleet")["run-auth-http"], tmp_path))
    scraped = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"]
    expected = [(role, [f"{role}:{settings[OperationsSettings].port}"]) for role in services if role.startswith("run-")]
    assert [(one["labels"]["job"], one["targets"]) for one in scraped] == expected
    for name in ("prometheus.yml", "../monitoring/alerts.yaml"):
        shutil.copy(folder / name, tmp_path)
    checks = [
        [program("promtool"), "check", "config", str(tmp_path / "prometheus.yml")],
        [program("caddy"), "validate", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")],
    ]
    for check in checks:
        done = subprocess.run(check, capture_output=True, text=True, env={"HOME": str(tmp_path)}, check=False)
        assert done.returncode == 0, done.stderr
    proxied = set(re.findall(r"import replicas (\S+)", (folder / "Caddyfile").read_text()))
    assert proxied == {f"{role}:{settings[HttpServerSettings].port}" for role in services if role.endswith("-http")}
    # the same as the one that is tested with PgBouncer, but for the addresses
    ours_lines, theirs = (
        (path.read_text().splitlines()) for path in (folder / "pgbouncer.ini", ROOT / "deploy/pgbouncer/pgbouncer.ini")
    )
    different = [line for line in ours_lines if line not in theirs]
    assert different == [
        "app = host=postgres port=5432 dbname=app",
        "listen_addr = 0.0.0.0",
        "auth_file = /run/secrets/pgbouncer-users",
    ]
