"""Where secrets come from besides the environment, what is taken over on SIGHUP, and variables that are misspelt."""

import signal
from pathlib import Path

import pytest

from app.kernel.config import Misconfigured, PostgresSettings, SentinelSettings, TelemetrySettings, load, schema
from app.kernel.config.misspelt import misspelt
from app.kernel.config.renewal import renewed
from app.kernel.db.server import configured_server
from app.modules.auth.settings import AuthSettings
from app.processes import sections
from tests.support.project import ROOT, Project, eventually

MASTER = "5b7e1d90c3f8a2642e9b0d7f16c8a35e4d"
VARIABLES = [setting.variable for kind in sections() for setting in schema(kind)]


# Credentials of systemd


def test_a_credential_of_systemd_is_overridden_by_the_environment_and_overrides_files(tmp_path: Path) -> None:
    (tmp_path / "auth.master_secret").write_text(f"{MASTER}\n")
    (tmp_path / "postgres.user").write_text("a-setting-that-is-no-secret")
    environ = {"APP_ENV": "test", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    found = load(ROOT, sections(), environ)
    assert found[AuthSettings].master_secret.get_secret_value() == MASTER
    assert found.sources["auth.master_secret"] == "credential auth.master_secret"
    assert found[PostgresSettings].user == "app"
    other = MASTER[::-1]
    (tmp_path / "file").write_text(other)
    for more in ({"AUTH_MASTER_SECRET": other}, {"AUTH_MASTER_SECRET_FILE": str(tmp_path / "file")}):
        assert load(ROOT, sections(), environ | more)[AuthSettings].master_secret.get_secret_value() == other


def test_a_credential_that_cannot_be_read_is_refused_and_explain_names_its_source(cli: Project, tmp_path: Path) -> None:
    (tmp_path / "auth.master_secret").write_bytes(b"\xff\xfe\xfd")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    with pytest.raises(Misconfigured, match=r"auth\.master_secret.*cannot read .* \(it is not UTF-8 text\)"):
        load(ROOT, sections(), {"APP_ENV": "test", **environ})
    (tmp_path / "auth.master_secret").write_text(MASTER)
    done = cli.app("config", "explain", "auth.master_secret", env=environ)
    assert "credential auth.master_secret" in done.stdout
    assert MASTER not in done.stdout


# SIGHUP


def test_what_may_change_is_taken_over_and_the_rest_needs_a_restart(tmp_path: Path) -> None:
    for key, value in {
        "POSTGRES_PASSWORD": "before-postgres",
        "SENTINEL_NOTIFY_URLS": "json://127.0.0.1/before",
        "TELEMETRY_OTLP_HEADERS": "k=before",
        "AUTH_MASTER_SECRET": MASTER,
        "POSTGRES_USER": "before",
    }.items():
        (tmp_path / key).write_text(value)
    environ = {"APP_ENV": "test"} | {f"{path.name}_FILE": str(path) for path in tmp_path.iterdir()}
    current = load(ROOT, sections(), environ | {"POSTGRES_HOST": "127.0.0.1"})
    server = configured_server(current[PostgresSettings], "test")

    def again() -> str | None:
        return renewed(current, lambda: load(ROOT, sections(), environ | {"POSTGRES_HOST": "127.0.0.1"}))

    assert again() is None
    for path in tmp_path.iterdir():
        path.write_text(path.read_text().replace("before", "after"))
    (tmp_path / "AUTH_MASTER_SECRET").write_text(MASTER[::-1])
    said = again()
    assert said == (
        "postgres.password, sentinel.notify_urls, telemetry.otlp_headers changed and in use;"
        " postgres.user, auth.master_secret changed: restart this process to use it"
    )
    assert current[PostgresSettings].password.get_secret_value() == "after-postgres"
    assert "password=after-postgres" in server.conninfo()  # of new connections
    assert "password=after-postgres" in server.reading_conninfo()
    assert current[SentinelSettings].notify_urls.get_secret_value() == "json://127.0.0.1/after"
    assert current[TelemetrySettings].otlp_headers.get_secret_value() == "k=after"
    assert current[AuthSettings].master_secret.get_secret_value() == MASTER
    (tmp_path / "AUTH_MASTER_SECRET").write_text("too-short")
    (tmp_path / "POSTGRES_PASSWORD").write_text("never-used")
    with pytest.raises(Misconfigured, match=r"auth\.master_secret .*; the settings stay as they were") as caught:
        again()
    assert "\n" not in str(caught.value)
    assert current[PostgresSettings].password.get_secret_value() == "after-postgres"


def test_a_process_reads_its_secrets_again_on_sighup(project: Project, tmp_path: Path) -> None:
    password, urls = tmp_path / "password", tmp_path / "urls"
    password.write_text("one-passw0rd")
    urls.write_text("json://127.0.0.1:1/one")
    files = {"POSTGRES_PASSWORD_FILE": str(password), "SENTINEL_NOTIFY_URLS_FILE": str(urls)}
    process = project.start("run-cron-manager", env=files)
    process.ready()
    password.write_text("another-passw0rd")
    urls.write_text("json://127.0.0.1:1/another")
    process.signal(signal.SIGHUP)
    wanted = "reloaded settings: postgres.password, sentinel.notify_urls changed and in use"
    eventually(lambda: wanted in process.messages())
    process.signal(signal.SIGHUP)
    eventually(lambda: "nothing to reload" in process.messages())
    password.unlink()
    process.signal(signal.SIGHUP)
    eventually(lambda: [m for m in process.messages() if "reloading settings failed: postgres.password" in m])
    assert process.stop() == 0
    assert "another" not in process.said()


# Variables that are misspelt

TYPOS = {
    "POSTGRES_HSOT": "POSTGRES_HOST",
    "POSTGRES_PASWORD": "POSTGRES_PASSWORD",
    "POSTGRES_PASSWORDD": "POSTGRES_PASSWORD",
    "POSTGRES_PASSWORD_FLIE": "POSTGRES_PASSWORD_FILE",
    "POSTGERS_HOST": "POSTGRES_HOST",
    "POSTGRES_BD": "POSTGRES_DB",
    "POSTGRES__HOST": "POSTGRES_HOST",
    "POSTGRESHOST": "POSTGRES_HOST",
    "postgres_host": "POSTGRES_HOST",
    "postgres.host": "POSTGRES_HOST",
    "AUTH_MASTER_SECERT": "AUTH_MASTER_SECRET",
    "AUTH_MASTERSECRET": "AUTH_MASTER_SECRET",
    "AUTH_MASTER_SECRETS": "AUTH_MASTER_SECRET",
    "HTTP_SERVER_PROT": "HTTP_SERVER_PORT",
    "LOGGER_LEVLE": "LOGGER_LEVEL",
    "LOGER_LEVEL": "LOGGER_LEVEL",
    "QUEUE_NAME": "QUEUE_NAMES",
    "SENTINEL_NOTIFY_URL": "SENTINEL_NOTIFY_URLS",
}


@pytest.mark.parametrize(("name", "meant"), TYPOS.items())
def test_a_misspelt_variable_is_warned_of_with_what_was_meant(name: str, meant: str) -> None:
    [problem] = misspelt({name: "x"}, VARIABLES)
    assert (problem.key, problem.message) == (name, f"no setting has this name; did you mean {meant}?")


def test_the_names_of_our_own_variables_are_no_mistakes() -> None:
    assert misspelt(dict.fromkeys((*VARIABLES, *(f"{name}_FILE" for name in VARIABLES)), ""), VARIABLES) == []


SERVICES = ("POSTGRES", "REDIS", "NATS", "AUTH", "HTTP_SERVER", "OPERATIONS", "QUEUE", "BACKUP", "LOGGER", "PROCESS")
LINKS = [
    f"{service}_{rest}"
    for service in SERVICES
    for rest in [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "PORT",
        "PORT_5432_TCP",
        "PORT_5432_TCP_PROTO",
        "PORT_5432_TCP_PORT",
        "PORT_5432_TCP_ADDR",
        "PORT_6379_TCP",
    ]
    if f"{service}_{rest}" not in VARIABLES
]
ORDINARY = [
    "HOME",
    "PATH",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TERM",
    "COLORTERM",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "MAIL",
    "EDITOR",
    "VISUAL",
    "PAGER",
    "HOSTNAME",
    "HOST",
    "TZ",
    "TMPDIR",
    "DISPLAY",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_ID",
    "XDG_DATA_DIRS",
    "XDG_CONFIG_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
    "LS_COLORS",
    "SSH_AUTH_SOCK",
    "SSH_CLIENT",
    "SSH_CONNECTION",
    "SSH_TTY",
    "SUDO_USER",
    "SUDO_UID",
    "SUDO_COMMAND",
    "DEBIAN_FRONTEND",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "PYTHONPATH",
    "PYTHONUNBUFFERED",
    "VIRTUAL_ENV",
    "PS1",
    "_",
    "LESSOPEN",
    "HISTCONTROL",
    "LD_PRELOAD",
    "MALLOC_ARENA_MAX",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "MAINPID",
    "SYSTEMD_EXEC_PID",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "LOGS_DIRECTORY",
    "CACHE_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "MANAGERPID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "SERVICE_RESULT",
    "EXIT_CODE",
    "EXIT_STATUS",
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
    "KUBERNETES_PORT",
    "KUBERNETES_PORT_443_TCP",
    "POD_NAME",
    "POD_IP",
    "NODE_NAME",
    "POSTGRES_INITDB_ARGS",
    "POSTGRES_HOST_AUTH_METHOD",
    "POSTGRES_INITDB_WALDIR",
    "POSTGRES_URL",
    "POSTGRES_DSN",
    "POSTGRES_VERSION",
    "POSTGRES_DATABASE",
    "POSTGRES_PASS",
    "POSTGRES_DATA",
    "PGHOST",
    "PGPORT",
    "PGUSER",
    "PGPASSWORD",
    "PGDATABASE",
    "PGDATA",
    "DATABASE_URL",
    "REDIS_PASSWORD",
    "REDIS_HOST",
    "CI",
    "GITHUB_ACTIONS",
    "GITHUB_REF",
    "GITHUB_SHA",
    "GITHUB_TOKEN",
    "GITHUB_WORKSPACE",
    "RUNNER_OS",
    "RUNNER_TEMP",
    "RUNNER_TOOL_CACHE",
    "GITLAB_CI",
    "CI_JOB_ID",
    "CI_JOB_TOKEN",
    "CI_COMMIT_SHA",
    "CI_PIPELINE_ID",
    "CI_PROJECT_DIR",
    "BUILD_NUMBER",
    "BUILD_ID",
    "JOB_NAME",
    "JENKINS_URL",
    "WORKSPACE",
    "EXECUTOR_NUMBER",
    "CIRCLECI",
    "CIRCLE_SHA1",
    "TRAVIS",
    "BUILDKITE",
    "TF_BUILD",
    "AGENT_ID",
    "AGENT_NAME",
    "SYSTEM_TEAMPROJECT",
    "DRONE",
    "BITBUCKET_COMMIT",
    "VAULT_ADDR",
    "VAULT_TOKEN",
    "VAULT_NAMESPACE",
    "VAULT_CACERT",
    "AWS_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_SERVICE_NAME",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "APP_ENV",
    "NO_COLOR",
    "AUTH_TOKEN",
    "AUTH_URL",
    "AUTH_SECRET",
    "LOGGER",
    "LOG_LEVEL",
    "QUEUE_URL",
    "QUEUE_HOST",
    "PROCESS_NAME",
    "PROCESS_ID",
    "HTTP_HOST",
    "HTTP_PORT",
    "SERVER_PORT",
    "SERVER_NAME",
]


def test_the_variables_of_ordinary_environments_are_no_mistakes() -> None:
    assert len(ORDINARY) > 150
    environ = dict.fromkeys([*ORDINARY, *LINKS], "x")
    assert [(problem.key, problem.message) for problem in misspelt(environ, VARIABLES)] == []


def test_commands_warn_of_a_misspelt_variable_and_a_service_link_of_kubernetes_is_explained(cli: Project) -> None:
    done = cli.app("config", "validate", env={"POSTGRES_HSOT": "db"})
    assert done.returncode == 0
    assert (
        done.stderr == "warning: POSTGRES_HSOT (environment): no setting has this name; did you mean POSTGRES_HOST?\n"
    )
    done = cli.app("run-cron-manager", env={"POSTGRES_PORT": "tcp://10.0.0.1:5432"})
    assert done.returncode == 78
    line, hint = done.stderr.splitlines()
    assert "postgres.port (POSTGRES_PORT): expected a valid integer" in line
    assert "a service link of Kubernetes, got 'tcp://10.0.0.1:5432'" in line
    assert hint == "hint: set enableServiceLinks: false in the pod, or set POSTGRES_PORT there"


# Staging and production

BASE = {"POSTGRES_HOST": "db.example.com", "POSTGRES_PASSWORD": "rk3LwNvY8qZs", "AUTH_MASTER_SECRET": MASTER}


@pytest.mark.parametrize("environment", ["staging", "production"])
@pytest.mark.parametrize(
    "issuer",
    [
        "http://127.0.0.1:8080",
        "https://localhost",
        "http://[::1]:80",
        "http://api.localhost/x",
        "localhost:8080",
        "0.0.0.0",
    ],
)
def test_a_loopback_issuer_is_refused_outside_local_and_test(environment: str, issuer: str) -> None:
    environ = {"APP_ENV": environment, "AUTH_ISSUER": issuer, **BASE}
    settings = load(ROOT, sections(), environ)
    settings.demand(PostgresSettings, SentinelSettings)
    with pytest.raises(Misconfigured, match=r"auth\.issuer .AUTH_ISSUER.: a loopback address outside local and test"):
        settings.demand(AuthSettings)
    load(ROOT, sections(), environ | {"APP_ENV": "test"}).demand(AuthSettings)
    for public in ("https://api.example.com", "http://10.0.0.1:8080", "https://localhost.example.com"):
        load(ROOT, sections(), environ | {"AUTH_ISSUER": public}).demand(AuthSettings)


@pytest.mark.parametrize("environment", ["local", "test", "staging", "production"])
def test_nobody_to_notify_is_warned_of_outside_local_and_test(environment: str) -> None:
    environ = {"APP_ENV": environment, **BASE}
    warned = [problem.key for problem in load(ROOT, sections(), environ).warnings]
    assert warned == ([] if environment in ("local", "test") else ["sentinel.notify_urls"])
    assert load(ROOT, sections(), environ | {"SENTINEL_NOTIFY_URLS": "json://10.0.0.1/"}).warnings == ()
