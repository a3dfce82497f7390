"""The configured server: reached with a password and TLS, refused in one line, waited for; and `app db shell`."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from secrets import token_urlsafe

import pytest

from app.kernel.db.devserver.embedded import embedded_binaries
from tests.commands.outcome import one_line
from tests.conftest import SUPERUSER, TestDatabase, log_in, required
from tests.support.debian import Authority, DebianServer, debian_server, free_port, installed
from tests.support.project import Project, eventually

CONNECTION = (
    "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'run-auth-http@%'"
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "authority")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[DebianServer]:
    """A server with TLS, and a certificate for localhost."""
    binaries = installed(15)
    if binaries is None:
        required("PostgreSQL 15")
    with debian_server(binaries) as found:
        found.certify(authority, "localhost")
        yield found


def refused(project: Project, password: str, *command: str, status: int = 78) -> str:
    """Run a command that is refused; return its one line."""
    done = project.app(*(command or ("migrate", "status")))
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert password not in done.stderr
    lines = done.stderr.splitlines()
    [found] = [line for line in lines if line.startswith("app: ")]
    assert "Traceback" not in done.stderr
    assert all(line.startswith("hint: ") for line in lines[lines.index(found) + 1 :]), done.stderr
    return found


def on(cli: Project, server: DebianServer, **env: str) -> Project:
    cli.env |= server.env | env
    return cli


@pytest.mark.parametrize("ssl", ["disable", "require"])
def test_ssl_is_used_as_configured(cli: Project, server: DebianServer, ssl: str) -> None:
    on(cli, server, POSTGRES_SSL=ssl).start("run-auth-http").ready()
    assert set(server.all(CONNECTION)) == {(ssl == "require",)}


def test_verify_full_accepts_the_server_that_the_authority_vouches_for(
    cli: Project, server: DebianServer, authority: Authority
) -> None:
    env = {"POSTGRES_SSL": "verify-full", "POSTGRES_SSL_ROOT_CERT": str(authority.file), "POSTGRES_HOST": "localhost"}
    process = on(cli, server, **env).start("run-auth-http")
    process.ready()
    assert set(server.all(CONNECTION)) == {(True,)}
    in_psql = cli.app("db", "shell", "-c", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", "-At")
    assert (in_psql.returncode, in_psql.stdout) == (0, "t\n"), in_psql.stderr
    assert process.stop() == 0


def test_verify_full_refuses_another_authority(cli: Project, server: DebianServer, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    env = {"POSTGRES_SSL": "verify-full", "POSTGRES_SSL_ROOT_CERT": str(other.file), "POSTGRES_HOST": "localhost"}
    line = refused(on(cli, server, **env), server.password)
    assert "certificate verify failed" in line
    assert "localhost" in line


def test_verify_full_refuses_another_host_name(cli: Project, server: DebianServer, authority: Authority) -> None:
    env = {"POSTGRES_SSL": "verify-full", "POSTGRES_SSL_ROOT_CERT": str(authority.file), "POSTGRES_HOST": "127.0.0.1"}
    line = refused(on(cli, server, **env), server.password)
    assert 'does not match host name "127.0.0.1"' in line


def test_verify_full_refuses_a_missing_file_of_the_authority(
    cli: Project, server: DebianServer, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.crt"
    env = {"POSTGRES_SSL": "verify-full", "POSTGRES_SSL_ROOT_CERT": str(missing), "POSTGRES_HOST": "localhost"}
    assert str(missing) in refused(on(cli, server, **env), server.password)


def test_require_refuses_a_server_without_ssl(cli: Project, server: DebianServer) -> None:
    server.set_ssl("off")
    try:
        line = refused(on(cli, server, POSTGRES_SSL="require"), server.password)
    finally:
        server.set_ssl("on")
    assert "does not support SSL" in line
    assert "POSTGRES_" in line


@pytest.mark.parametrize(
    ("env", "reason", "hint"),
    [
        (
            {"POSTGRES_PASSWORD": "pw-wrong"},
            'password authentication failed for user "app"',
            "check POSTGRES_USER and POSTGRES_PASSWORD",
        ),
        ({"POSTGRES_PASSWORD": ""}, "no password supplied", "set POSTGRES_PASSWORD"),
        ({"POSTGRES_USER": "nobody_there"}, "nobody_there", "check POSTGRES_USER"),
        ({"POSTGRES_DB": "not_there"}, 'database "not_there" does not exist', "check POSTGRES_DB, or create"),
    ],
    ids=["wrong password", "no password", "unknown role", "missing database"],
)
def test_what_waiting_cannot_mend_is_refused_at_once(
    cli: Project, server: DebianServer, env: dict[str, str], reason: str, hint: str
) -> None:
    started = time.monotonic()
    line = refused(on(cli, server, POSTGRES_STARTUP_TIMEOUT="60s", **env), server.password)
    assert time.monotonic() - started < 45
    assert reason in line
    assert hint in line
    assert "pw-wrong" not in line
    assert f"127.0.0.1:{server.port}" in line


def test_a_process_with_a_wrong_password_does_not_start(cli: Project, server: DebianServer) -> None:
    on(cli, server, POSTGRES_STARTUP_TIMEOUT="60s", POSTGRES_PASSWORD="pw-wrong")
    line = refused(cli, "pw-wrong", "run-event-consumer", "--port", "0")
    assert "password authentication failed" in line


def test_a_server_that_is_not_there_is_waited_for_and_then_unavailable(cli: Project) -> None:
    cli.env |= {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(free_port()), "POSTGRES_STARTUP_TIMEOUT": "1500ms"}
    started = time.monotonic()
    line = refused(cli, "pw-", status=69)
    assert 1.5 <= time.monotonic() - started < 28
    assert "does not answer" in line
    assert line.endswith("; start it, or check POSTGRES_HOST and POSTGRES_PORT")


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "256.256.256.256"])
def test_a_host_without_an_address_is_told_to_check_its_name(cli: Project, host: str) -> None:
    cli.env |= {"POSTGRES_HOST": host, "POSTGRES_STARTUP_TIMEOUT": "100ms", "AUTH_MASTER_SECRET": token_urlsafe(32)}
    line = refused(cli, "pw-", status=69)
    assert line.endswith("; check POSTGRES_HOST: no address found for it")


def test_a_full_server_is_not_told_to_start(cli: Project, server: DebianServer) -> None:
    server.run("ALTER ROLE app CONNECTION LIMIT 0", "postgres")
    try:
        line = refused(on(cli, server, POSTGRES_STARTUP_TIMEOUT="100ms"), server.password, status=69)
    finally:
        server.run("ALTER ROLE app CONNECTION LIMIT -1", "postgres")
    assert "accepts no connection" in line
    assert "all connections are in use: raise max_connections" in line
    assert "start it" not in line


def test_a_server_that_comes_up_during_the_wait_is_used(cli: Project, server: DebianServer) -> None:
    server.stop()
    try:
        process = on(cli, server, POSTGRES_STARTUP_TIMEOUT="60s").start("run-auth-http")
        eventually(lambda: any("waiting for PostgreSQL" in message for message in process.messages()))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
    finally:
        server.start()
    process.ready()
    assert process.stop() == 0
    assert server.password not in process.said()


def test_the_password_is_in_no_output_and_in_no_command_line(cli: Project, server: DebianServer) -> None:
    process = on(cli, server, LOGGER_LEVEL="debug").start("run-all-in-one")
    process.ready()
    psql = cli.start("db", "shell", "-c", "SELECT pg_sleep(30)")
    running = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)' AND state = 'active'"
    eventually(lambda: server.all(running))
    shown = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert "SELECT pg_sleep(30)" in shown
    assert server.password not in shown
    server.run(f"SELECT pg_cancel_backend(pid) FROM ({running}) a")
    assert psql.wait() == 1
    assert "canceling statement" in psql.said()
    assert process.stop() == 0
    for said in (process.said(), psql.said()):
        assert server.password not in said


def test_a_role_that_may_not_create_tables_is_told_what_to_grant(cli: Project, server: DebianServer) -> None:
    server.run("CREATE DATABASE somebody_elses", "postgres")
    done = on(cli, server, POSTGRES_DB="somebody_elses").app("migrate", "up")
    assert done.returncode == 1
    assert "GRANT CREATE" in done.stderr
    assert one_line(done.stderr)


def test_a_superuser_signs_in_on_postgresql_15(cli: Project, server: DebianServer) -> None:
    server.run("CREATE DATABASE signing_in OWNER app", "postgres")
    signs_in_and_stops(on(cli, server, POSTGRES_DB="signing_in", POSTGRES_SSL="require"))
    assert server.all("SELECT count(*) FROM auth.actors", "signing_in") == [(1,)]
    assert server.all("SHOW server_version_num")[0][0].startswith("15")


def test_a_superuser_signs_in_on_postgresql_16(cli: Project) -> None:
    wheel = embedded_binaries()  # it has a 16 beside the 18 that is embedded
    binaries = wheel and wheel.parent.with_name("pginstall") / "bin"
    if binaries is None or not binaries.is_dir():
        required("PostgreSQL 16")
    with debian_server(binaries) as sixteen:
        assert sixteen.all("SHOW server_version_num")[0][0].startswith("16")
        signs_in_and_stops(on(cli, sixteen))
        assert sixteen.all("SELECT count(*) FROM auth.actors") == [(1,)]


def test_a_superuser_signs_in_on_the_embedded_server(cli: Project, tmp_path: Path) -> None:
    signs_in_and_stops(cli.copy(tmp_path / "copy"))


def signs_in_and_stops(project: Project) -> None:
    process = project.start("run-all-in-one")
    client = log_in(project, process)
    me = client.get("/auth/v1/me").json()
    assert me["actor"]["username"] == SUPERUSER[0]
    assert client.get("/platform/v1/processes").json()["items"][0]["pid"] == process.pid
    assert process.stop() == 0


def test_db_shell_uses_the_embedded_server_and_passes_the_exit_status_on(cli: Project, tmp_path: Path) -> None:
    copy = cli.copy(tmp_path / "copy")
    good = copy.app("db", "shell", "-At", "-c", "SELECT 6 * 7")
    assert (good.returncode, good.stdout) == (0, "42\n"), good.stderr
    script = ("db", "shell", "-v", "ON_ERROR_STOP=1", "-f", "-")
    bad = copy.app(*script, stdin="SELECT 1 / 0;", env={"PATH": "/nowhere"})  # psql is in the wheel
    assert bad.returncode == 3, bad.stderr
    assert "division by zero" in bad.stderr


def test_db_shell_uses_the_configured_server_and_its_password(cli: Project, server: DebianServer) -> None:
    if shutil.which("psql") is None:
        required("psql")
    done = on(cli, server).app("db", "shell", "-At", "-c", "SELECT current_user, current_database()")
    assert (done.returncode, done.stdout) == (0, "app|app\n"), done.stderr
    secrets = {"AUTH_MASTER_SECRET": "s" * 16 + "0123456789abcdef", "VAULT_TOKEN": "hvs.x", "SSH_AUTH_SOCK": "/x"}
    done = on(cli, server).app(
        "db", "shell", "-c", r"\! env | cut -d= -f1", env={**secrets, "PSQL_PAGER": "cat", "LC_ALL": "C"}
    )
    names = set(done.stdout.splitlines())
    assert {"PATH", "PGHOST", "PGPASSWORD", "PSQL_PAGER", "LC_ALL"} <= names
    assert not {name for name in names if name in secrets or name.startswith(("POSTGRES_", "APP_"))}


def test_db_shell_without_psql_says_what_to_install(project: Project, database: TestDatabase) -> None:
    done = project.app("db", "shell", "-c", "SELECT 1", env={"PATH": os.devnull})
    assert done.returncode == 78
    assert "postgresql-client" in done.stderr
    assert one_line(done.stderr)
