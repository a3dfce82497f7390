"""`app systemd`: units that agree with the processes and that systemd accepts; installing shows what it changes."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app.kernel.config import Settings, load
from app.kernel.errors import Invalid
from app.kernel.product import NAME
from app.kernel.systemd.units import Installation, Role, ports_of, started, units
from app.processes import PROCESSES, sections
from tests.conftest import postgres_binaries, program
from tests.support.debian import debian_server
from tests.support.project import ROOT, Project

DEPLOYED = ROOT / "deploy/systemd"
PRODUCTION = {"APP_ENV": "production"}  # secrets are not needed to print units
ROLES = [Role(name, spec.help, spec.listens == "http_server", spec.has_instances) for name, spec in PROCESSES.items()]


def printed(project: Project, *args: str) -> dict[str, str]:
    done = project.app("systemd", "print", "--json", *args, env=PRODUCTION)
    assert done.returncode == 0, done.stderr
    return {item["name"]: item["content"] for item in json.loads(done.stdout)["items"]}


def value(unit: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{key}=")]


def test_the_deployed_units_are_what_print_writes_for_production(cli: Project) -> None:
    deployed = {path.name: path.read_text() for path in DEPLOYED.iterdir() if path.suffix != ".md"}
    assert deployed == printed(cli, "--command", f"/opt/{NAME}/bin/{NAME}"), "run `just systemd`"


def test_every_process_has_a_unit_with_its_own_ports_and_an_api_a_socket(cli: Project) -> None:
    found = printed(cli, "--command", "/opt/x")
    listeners: list[str] = []
    alerts = (ROOT / "deploy/monitoring/alerts.yaml").read_text()
    [limit_mib] = re.findall(r"expr: (\d+) \* 1024 \* 1024 \* group by", alerts)
    for name, spec in PROCESSES.items():
        unit = f"{NAME}-{name.removeprefix('run-')}{'@' if spec.has_instances else ''}"
        service = found.pop(f"{unit}.service")
        [command] = value(service, "ExecStart")
        assert command.startswith(f"/opt/x {name} --host 0.0.0.0 --port ")
        port = shlex.split(command)[-1]
        socket = found.pop(f"{unit}.socket", None)
        assert (socket is not None) == (spec.listens == "http_server")
        if socket is not None:
            assert value(socket, "ListenStream") == [f"0.0.0.0:{port}"]
            assert value(socket, "FileDescriptorName") == ["http"]
            assert value(service, "Requires") == [f"{unit}.socket"]
            assert "OPERATIONS_PORT=" in service
        if name != "run-all-in-one":
            listeners += [port, *(v.partition("=")[2] for v in value(service, "Environment") if "OPERATIONS_PORT" in v)]
        is_agent = name == "run-backup-agent"
        assert value(service, "MemoryMax") == ["1G" if is_agent else f"{limit_mib}M"]
        assert value(service, "Nice") == (["10"] if is_agent else [])
        secrets = [each for each in value(service, "LoadCredential") if each.startswith("backup.key:")]
        assert bool(secrets) == bool(value(service, "CacheDirectory")) == (is_agent or name == "run-all-in-one")
        assert value(service, "TimeoutStopSec") == ["48"]  # 3 s + 25 s + 15 s, and 5 s to spare
    assert sorted(found) == [f"{NAME}-migrate.service", f"{NAME}.target"]
    assert len(set(listeners)) == len(listeners)


def test_systemd_accepts_every_unit_and_rates_its_exposure_at_most_2(cli: Project, tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    odd = tmp_path / "a b%c$d;e"  # characters that mean something in a unit
    odd.symlink_to(sys.executable)
    for args in ((), ("--command", str(odd))):
        folder = tmp_path / f"units-{len(args)}"
        folder.mkdir()
        written = cli.app("systemd", "install", "--dir", str(folder), "--yes", *args, env=PRODUCTION)
        assert written.returncode == 0, written.stderr
        files = [str(path) for path in folder.iterdir()]
        verified = subprocess.run([analyze, "verify", *files], capture_output=True, text=True, check=False)
        assert (verified.returncode, verified.stderr) == (0, "")
    services = [name for name in files if name.endswith(".service")]
    assert len(services) == len(PROCESSES) + 1
    command = [analyze, "security", "--offline=true", "--no-pager", "--threshold=20", *services]
    rated = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (rated.returncode, rated.stderr) == (0, "")
    assert rated.stdout.count("Overall exposure level") == len(services)
    broken = folder / "broken.service"
    broken.write_text("[Service]\nExecStart=/bin/true\nNoNewPrivilege=yes\n")
    assert subprocess.run([analyze, "verify", str(broken)], capture_output=True, check=False).stderr
    exposed = [analyze, "security", "--offline=true", "--threshold=20", str(broken)]
    assert subprocess.run(exposed, capture_output=True, check=False).returncode != 0


def settings(**variables: str) -> Settings:
    return load(ROOT, sections(), {"APP_ENV": "test", **variables})


@pytest.mark.parametrize(
    ("http", "operations"), [("8080", "8081"), ("8081", "8080"), ("80", "90"), ("90", "80"), ("1", "1")]
)
def test_ports_never_collide_and_those_of_a_new_module_move_no_other(http: str, operations: str) -> None:
    given = settings(HTTP_SERVER_PORT=http, OPERATIONS_PORT=operations)
    before: dict[str, object] = {}
    for apis in range(1, 8):
        roles = [*ROLES, *(Role(f"run-module{n}-http", "An API.", serves=True, is_template=False) for n in range(apis))]
        ports = {role.command: each for role, each in ports_of(roles, given).items() if not role.is_whole}
        numbers = [port for each in ports.values() for port in each if port]
        assert len(set(numbers)) == len(numbers), ports
        if (http, operations) == ("8080", "8081"):
            assert before.items() <= ports.items()
            before = ports


@pytest.mark.parametrize(
    "variables", [{"HTTP_SERVER_PORT": "0"}, {"OPERATIONS_PORT": "0"}, {"HTTP_SERVER_PORT": "65530"}]
)
def test_ports_that_no_unit_can_have_are_refused(variables: dict[str, str]) -> None:
    with pytest.raises(Invalid, match="port"):
        units(ROLES, settings(**variables), Installation(("/bin/x",), None, Path("/etc/x"), ()))


def test_installing_is_safe_to_repeat_and_shows_what_it_changes(cli: Project, tmp_path: Path) -> None:
    folder = tmp_path / "units"
    folder.mkdir()

    def install(*args: str) -> subprocess.CompletedProcess[str]:
        return cli.app("systemd", "install", "--dir", str(folder), *args, env=PRODUCTION)

    assert install("--dry-run").returncode == 0
    refused = install()
    assert (refused.returncode, list(folder.iterdir())) == (1, [])
    assert refused.stderr.endswith(f"units would be written to {folder}; confirm with --yes\n")
    assert install("--yes").returncode == 0
    changed = folder / f"{NAME}-auth-http.service"
    original = changed.read_text()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    changed.write_text(original.replace("WatchdogSec=30", "WatchdogSec=99"))
    refused = install()
    assert "-WatchdogSec=99\n+WatchdogSec=30\n" in refused.stdout
    assert refused.stderr.endswith(f"1 units would be written to {folder}; confirm with --yes\n")
    assert changed.read_text() != original
    again = install("--yes")
    assert "-WatchdogSec=99\n+WatchdogSec=30\n" in again.stdout
    assert changed.read_text() == original
    repeated = install()  # nothing to ask for
    assert repeated.returncode == 0
    assert {line.split()[0] for line in repeated.stdout.splitlines()} == {"unchanged"}
    assert "systemctl enable --now" in repeated.stderr


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (
            ["install", "--yes", "--dir", "/nowhere"],
            67,
            "there is no folder /nowhere; create it, or choose another with --dir",
        ),
        (["install", "--yes", "--dir", "/etc/passwd"], 67, "there is no folder /etc/passwd; "),
        (["install", "--yes", "--dir", "/proc/self"], 1, "cannot write /proc/self/"),
        (["print", "run-auth-htpp"], 67, "there is no process run-auth-htpp; did you mean run-auth-http?"),
        (["print", "--environment-file", "/etc/x\nExecStartPre=/bin/sh"], 65, "a unit cannot have '/etc/x\\nExec"),
        (["install", "--yes", "--enable", "--dir", "/tmp"], 69, "systemd does not run on this machine; "),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(cli: Project, args: list[str], status: int, says: str) -> None:
    if "--enable" in args and Path("/run/systemd/system").exists():
        pytest.skip("systemd runs on this machine")
    ended = cli.app("systemd", *args, env=PRODUCTION)
    lines = [line for line in ended.stderr.splitlines() if not line.startswith(("warning: ", "hint: "))]
    assert (ended.returncode, len(lines)) == (status, 1), ended.stderr
    assert lines[0].startswith(f"{NAME}: {says}")


def test_a_host_is_neither_a_specifier_nor_a_variable_of_systemd(cli: Project) -> None:
    printed = cli.app("systemd", "print", "run-cron-manager", env={"OPERATIONS_HOST": "%h$HOME"})
    assert " --host %%h$$HOME --port " in printed.stdout


def test_the_units_to_enable_are_those_of_the_named_processes_or_all_but_the_one_that_replaces_them() -> None:
    given = settings()
    chosen = [role for role in ROLES if role.command == "run-event-consumer"]
    named = [f"{NAME}.target", f"{NAME}-migrate.service", f"{NAME}-event-consumer@8083.service"]
    assert started(ROLES, chosen, given) == named


def test_every_process_runs_under_what_its_unit_allows(cli: Project) -> None:
    program("systemd-analyze")
    found = printed(cli)
    with debian_server(postgres_binaries()) as server:
        project = Project(cli.root, cli.scratch, {**cli.env, **server.env}, running=cli.running)
        migrate = sandboxed(project, found[f"{NAME}-migrate.service"], "migrate", "up")
        env = project.environment()
        migrated = subprocess.run(migrate, env=env, cwd=project.root, capture_output=True, text=True, check=False)
        assert migrated.returncode == 0, migrated.stderr
        for role in ROLES:
            script = project.scratch / role.command
            script.write_text(f'#!/bin/sh\nexec {shlex.join(sandboxed(project, found[role.unit])[:-2])} "$@"\n')
            script.chmod(0o755)
            replace(project, python=str(script)).start(role.command)
        for process in project.running:
            process.ready()
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert "NoNewPrivs:\t1" in status
            assert "Seccomp:\t2" in status
            assert "CapBnd:\t0000000000000000" in status or os.geteuid() != 0
        assert [process.stop() for process in project.running] == [0] * len(ROLES)
        assert "".join(process.errors.read_text() for process in project.running) == ""


def sandboxed(project: Project, unit: str, *args: str) -> list[str]:
    """Return a command under the restrictions of a unit."""
    lines = json.dumps([line for line in unit.splitlines() if "=" in line and not line.startswith("#")])
    return [project.python, str(ROOT / "tests/support/sandbox.py"), lines, project.python, "-m", NAME, *args]
