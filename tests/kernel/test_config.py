"""Settings: what wins, what is refused, what is never shown."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from dynaconf.vendor.ruamel import yaml
from pydantic import SecretStr

from app.kernel.config import (
    ENVIRONMENTS,
    HttpServerSettings,
    LoggerSettings,
    Misconfigured,
    PostgresSettings,
    ProcessSettings,
    QueueSettings,
    SentinelSettings,
    Settings,
    current_environment,
    environment_name,
    load,
    schema,
)
from app.kernel.product import NAME
from app.modules.auth.settings import AuthSettings
from app.processes import sections
from tests.support.project import ROOT, Project

SCHEMA = {setting.key: setting.description for kind in sections() for setting in schema(kind)}
SECRETS = [v.key for v in load(ROOT, sections(), {"APP_ENV": "test"}).values() if v.secret]
OPTIONAL = ["nats.url", "redis.sentinel_password", "redis.url", "sentinel.notify_urls", "telemetry.otlp_headers"]
OPTIONAL += ["auth.master_secret_previous"]
REQUIRED = [key for key in SECRETS if key not in OPTIONAL]
REAL = {environment_name(key): sha256(key.encode()).hexdigest() for key in SECRETS}
REAL["NATS_URL"] = f"tls://{REAL['NATS_URL']}@nats.example.com"
REAL["REDIS_URL"] = f"redis://:{REAL['REDIS_URL']}@cache.example.com"
HOSTS = {"POSTGRES_HOST": "db.example.com", "AUTH_ISSUER": "https://api.example.com"}
PRODUCTION = {"APP_ENV": "production", **HOSTS, **REAL}


class Folder:
    """A copy of the settings of this project, to change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "settings"
        self.path.mkdir()
        for file in (ROOT / "settings").glob("[!.]*.yaml"):
            shutil.copy(file, self.path)

    def append(self, name: str, text: str) -> None:
        with (self.path / name).open("a") as file:
            file.write(f"\n{text}\n")

    def write(self, name: str, content: str | bytes) -> None:
        (self.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    def load(self, environ: Mapping[str, str] | None = None, overrides: Mapping[str, object] | None = None) -> Settings:
        """Load the settings as a process does that uses all of them."""
        settings = load(self.root, sections(), {"APP_ENV": "test", **(environ or {})}, overrides)
        settings.demand(*sections())
        return settings

    def refusal(self, environ: Mapping[str, str] | None = None) -> Misconfigured:
        with pytest.raises(Misconfigured) as caught:
            self.load(environ)
        return caught.value

    def problems(self, environ: Mapping[str, str] | None = None) -> list[tuple[str, str, str]]:
        return [(p.key, p.source, p.message) for p in self.refusal(environ).problems]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def source_of(settings: Settings, key: str) -> str:
    return next(value.source for value in settings.values() if value.key == key)


# Layers


def test_a_later_layer_wins_over_every_earlier_one(folder: Folder) -> None:
    def user(
        environ: Mapping[str, str] | None = None, overrides: Mapping[str, object] | None = None
    ) -> tuple[str, str]:
        settings = folder.load(environ, overrides)
        return settings[PostgresSettings].user, source_of(settings, "postgres.user")

    assert user() == ("app", "settings/default.yaml")
    folder.append("test.yaml", "postgres:\n  user: of-env-file")
    assert user() == ("of-env-file", "settings/test.yaml")
    folder.write(".secrets.yaml", "postgres:\n  user: of-secrets\n")
    assert user() == ("of-secrets", "settings/.secrets.yaml")
    (folder.root / "file").write_text("of-file\n")
    from_file = {"POSTGRES_USER_FILE": str(folder.root / "file")}
    assert user(from_file) == ("of-file", "POSTGRES_USER_FILE")
    environ = {"POSTGRES_USER": "of-environment"}
    assert user(environ) == ("of-environment", "POSTGRES_USER")
    assert user(environ, {"postgres.user": "of-option"}) == ("of-option", "command line")


def test_the_file_of_another_environment_is_not_a_layer(folder: Folder) -> None:
    folder.append("local.yaml", "postgres:\n  user: of-local")
    folder.write("test.local.yaml", "postgres:\n  user: of-dynaconf\n")
    folder.write("default.local.yaml", "postgres:\n  user: of-dynaconf\n")
    assert folder.load()[PostgresSettings].user == "app"


def test_a_section_in_a_later_file_changes_only_the_keys_that_it_names(folder: Folder) -> None:
    before = folder.load()[PostgresSettings]
    folder.append("test.yaml", "postgres:\n  user: other")
    after = folder.load()[PostgresSettings]
    assert (after.user, after.db, after.pool_size) == ("other", before.db, before.pool_size)


def test_a_list_in_a_later_file_replaces_that_of_an_earlier_one(folder: Folder) -> None:
    folder.append("test.yaml", "queue:\n  names: [first]")
    folder.write(".secrets.yaml", "queue:\n  names: [second, third]\n")
    assert folder.load()[QueueSettings].names == ("second", "third")


def test_a_list_in_the_environment_is_separated_by_commas(folder: Folder) -> None:
    assert folder.load({"QUEUE_NAMES": "mail, reports,"})[QueueSettings].names == ("mail", "reports")


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("x", "x"),
        ("x\n", "x"),
        ("x\r\n", "x"),
        ("x\n\n", "x"),
        ("x\r\n\r\n", "x"),
        ("\ufeffx\n", "x"),
        ("\ufeff", ""),
        (" x", " x"),
        ("x \n", "x "),
        ("x\ny\n", "x\ny"),
        ("\nx", "\nx"),
        ("x\ufeff", "x\ufeff"),
    ],
)
def test_a_value_from_a_file_loses_a_byte_order_mark_and_its_last_line_ends_and_nothing_else(
    folder: Folder, content: str, value: str
) -> None:
    file = folder.root / "secret"
    file.write_bytes(content.encode())
    settings = folder.load({"POSTGRES_PASSWORD_FILE": str(file)})
    assert settings[PostgresSettings].password.get_secret_value() == value


def test_a_variable_and_its_file_form_together_are_refused(folder: Folder) -> None:
    (folder.root / "file").write_text("x")
    environ = {"POSTGRES_USER": "a", "POSTGRES_USER_FILE": str(folder.root / "file")}
    assert folder.problems(environ) == [
        ("postgres.user", "POSTGRES_USER", "POSTGRES_USER_FILE is set too; keep one of them")
    ]


def test_an_empty_file_variable_counts_as_absent(folder: Folder) -> None:
    assert source_of(folder.load({"POSTGRES_USER_FILE": ""}), "postgres.user") == "settings/default.yaml"


def test_an_absent_app_env_is_local(folder: Folder) -> None:
    assert load(folder.root, sections(), {}).environment == "local"


@pytest.mark.parametrize("name", ["", " ", "\t", "\n", "LOCAL", " local", "Test", "local,test", "*", "none"])
def test_an_app_env_that_is_blank_or_differs_in_a_character_is_refused(name: str) -> None:
    with pytest.raises(Misconfigured, match=r"APP_ENV is .*, expected one of local, test, staging, production"):
        current_environment({"APP_ENV": name})


@pytest.mark.parametrize(
    ("name", "near"), [("prod", "production"), ("Production", "production"), ("stage", "staging"), ("locale", "local")]
)
def test_an_unknown_app_env_is_refused_with_a_suggestion(name: str, near: str) -> None:
    with pytest.raises(Misconfigured, match=f"APP_ENV is '{name}'.*did you mean {near}"):
        current_environment({"APP_ENV": name})


def test_an_unknown_app_env_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(Misconfigured) as caught:
        current_environment({"APP_ENV": "qqq"})
    assert all(name in str(caught.value) for name in ENVIRONMENTS)
    assert "did you mean" not in str(caught.value)


# Refusals


def remove_key(folder: Folder) -> None:
    text = (folder.path / "default.yaml").read_text()
    folder.write("default.yaml", text.replace("  pool_size: 10\n", ""))


def change(name: str, text: str) -> Callable[[Folder], None]:
    return lambda folder: folder.append(name, text)


WRONG: dict[str, tuple[Callable[[Folder], None], Mapping[str, str], tuple[str, str, str]]] = {
    "number": (
        change("test.yaml", "postgres:\n  port: many"),
        {},
        ("postgres.port", "settings/test.yaml", "expected a valid integer, unable to parse string as an integer"),
    ),
    "truth for a number": (
        change("test.yaml", "postgres:\n  port: true"),
        {},
        ("postgres.port", "settings/test.yaml", "expected a valid integer"),
    ),
    "number for text": (
        change("test.yaml", "postgres:\n  user: 5"),
        {},
        ("postgres.user", "settings/test.yaml", "expected a valid string, got 5"),
    ),
    "range": (lambda _: None, {"HTTP_SERVER_PORT": "65536"}, ("http_server.port", "HTTP_SERVER_PORT", "65535")),
    "choice": (
        lambda _: None,
        {"POSTGRES_SSL": "yes"},
        ("postgres.ssl", "POSTGRES_SSL", "expected 'disable', 'require' or 'verify-full', got 'yes'"),
    ),
    "truth": (lambda _: None, {"HTTP_SERVER_DEBUG": "maybe"}, ("http_server.debug", "HTTP_SERVER_DEBUG", "boolean")),
    "empty": (lambda _: None, {"POSTGRES_USER": ""}, ("postgres.user", "POSTGRES_USER", "a non-empty value")),
    "no names": (lambda _: None, {"QUEUE_NAMES": " ,"}, ("queue.names", "QUEUE_NAMES", "a non-empty value")),
    "duration": (
        lambda _: None,
        {"PROCESS_GRACE": "soon"},
        ("process.grace", "PROCESS_GRACE", "expected a duration such as 500ms, 30s, 5m, 12h or 7d, got 'soon'"),
    ),
    "typo": (
        change("test.yaml", "postgres:\n  pool_sice: 5"),
        {},
        ("postgres.pool_sice", "settings/test.yaml", "unknown key; did you mean postgres.pool_size?"),
    ),
    "case": (
        change("test.yaml", "postgres:\n  Host: x"),
        {},
        ("postgres.Host", "settings/test.yaml", "unknown key; did you mean postgres.host?"),
    ),
    "section": (
        change("test.yaml", "postgers:\n  host: x"),
        {},
        ("postgers.host", "settings/test.yaml", "unknown key; did you mean postgres.host?"),
    ),
    "no mapping": (
        change("test.yaml", "postgres: x"),
        {},
        ("postgres", "settings/test.yaml", "expected a section with keys below it"),
    ),
    "missing": (remove_key, {}, ("postgres.pool_size", "nowhere", "missing; set POSTGRES_POOL_SIZE")),
    "short secret": (
        lambda _: None,
        {"AUTH_MASTER_SECRET": "short"},
        ("auth.master_secret", "AUTH_MASTER_SECRET", "expected at least 32 characters"),
    ),
    "empty secret": (
        lambda _: None,
        {"AUTH_MASTER_SECRET": ""},
        ("auth.master_secret", "AUTH_MASTER_SECRET", "expected at least 32 characters"),
    ),
    "file": (
        lambda _: None,
        {"LOGGER_LEVEL_FILE": "/nowhere/level"},
        ("logger.level", "LOGGER_LEVEL_FILE", "cannot read /nowhere/level (No such file or directory)"),
    ),
    "folder for a file": (
        lambda _: None,
        {"LOGGER_LEVEL_FILE": "/"},
        ("logger.level", "LOGGER_LEVEL_FILE", "cannot read / (Is a directory)"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_its_source_and_what_is_expected(folder: Folder, case: str) -> None:
    spoil, environ, (key, source, message) = WRONG[case]
    spoil(folder)
    [found] = folder.problems(environ)
    assert found[:2] == (key, source)
    assert message in found[2]


def test_a_value_file_that_is_not_utf_8_is_refused(folder: Folder) -> None:
    (folder.root / "latin").write_bytes(b"caf\xe9")
    environ = {"POSTGRES_PASSWORD_FILE": str(folder.root / "latin")}
    [(key, source, message)] = folder.problems(environ)
    assert (key, source) == ("postgres.password", "POSTGRES_PASSWORD_FILE")
    assert message.endswith("(it is not UTF-8 text)")


def test_every_problem_is_in_one_report(folder: Folder) -> None:
    folder.append("test.yaml", "postgres:\n  port: many\n  hots: x\nlogger: loud\nnonsense:\n  a: 1\n  b: 2")
    environ = {"PROCESS_GRACE": "soon", "AUTH_MASTER_SECRET": "short", "QUEUE_CONCURRENCY_FILE": "/nowhere"}
    refusal = folder.refusal(environ)
    keys = {problem.key for problem in refusal.problems}
    assert keys == {
        "postgres.port",
        "postgres.hots",
        "logger",
        "nonsense.a",
        "nonsense.b",
        "process.grace",
        "auth.master_secret",
        "queue.concurrency",
    }
    assert str(refusal).startswith("settings for APP_ENV=test: 8 problems\n")
    lines = str(refusal).splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [[p.key, p.source] for p in refusal.problems]


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "unclosed": ('postgres:\n  password: "hunter2\n', "not YAML at line 3"),
    "alias": ("postgres:\n  password: *hunter2\n", "not YAML at line 2, column 13; quote"),
    "tag": ("postgres:\n  password: !hunter2 x\n", "not YAML at line 2, column 13; quote"),
    "colon": ("postgres:\n  password: hunter2: x\n", "not YAML at line 2"),
    "twice": ("postgres:\n  password: hunter2\n  password: hunter2-new\n", "duplicate key at line 3"),
    "text": ("hunter2\n", "expected sections with keys below them"),
    "list": ("- hunter2\n", "expected sections with keys below them"),
    "bytes": (b"postgres:\n  password: hunter2\xff\n", "is not UTF-8 text"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_the_place_and_without_what_stands_there(folder: Folder, case: str) -> None:
    content, message = BROKEN[case]
    folder.write(".secrets.yaml", content)
    refusal = folder.refusal()
    [problem] = refusal.problems
    assert problem.source == "settings/.secrets.yaml"
    assert message in problem.message
    assert "hunter2" not in str(refusal)


def test_every_broken_or_missing_file_is_in_one_report(folder: Folder) -> None:
    (folder.path / "default.yaml").unlink()
    folder.write("test.yaml", "a: [")
    (folder.path / ".secrets.yaml").symlink_to(folder.root / "not-mounted")
    found = {source: message for _, source, message in folder.problems()}
    assert found["settings/default.yaml"] == found["settings/.secrets.yaml"]
    assert found["settings/default.yaml"] == "cannot be read: No such file or directory"
    assert found["settings/test.yaml"].startswith("not YAML at line")


# Durations


@pytest.mark.parametrize(
    ("written", "seconds"),
    {
        "500ms": 0.5,
        "30s": 30,
        "5m": 300,
        "12h": 43200,
        "7d": 604800,
        "1.5s": 1.5,
        " 2s ": 2,
        "0s": 0,
        "30": 30,
        "0.25": 0.25,
    }.items(),
)
def test_a_duration_means_the_same_in_a_file_and_in_the_environment(
    folder: Folder, written: str, seconds: float
) -> None:
    def grace(settings: Settings) -> float:
        return settings[ProcessSettings].grace

    assert grace(folder.load({"PROCESS_GRACE": written})) == pytest.approx(seconds)
    folder.write(".secrets.yaml", f"process:\n  grace: {written}\n")
    assert grace(folder.load()) == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["5 m", "5M", "-1s", "-1", "1e3", ".5s", "5min", "inf", "nan", "", "٣s", "1s2m"])
def test_what_is_no_duration_is_refused(folder: Folder, written: str) -> None:
    assert [p[0] for p in folder.problems({"PROCESS_GRACE": written})] == ["process.grace"]


@pytest.mark.parametrize("written", [".inf", ".nan", "true", "-1", "[1]", "~"])
def test_what_yaml_reads_as_no_finite_number_is_no_duration(folder: Folder, written: str) -> None:
    folder.write(".secrets.yaml", f"process:\n  grace: {written}\n")
    assert [p[0] for p in folder.problems()] == ["process.grace"]


# Secrets


def everything_shown(settings: Settings) -> str:
    shown = [repr(settings), str(settings), *map(repr, settings.sections.values()), repr(settings.values())]
    return "\n".join([*shown, *(repr(value) for value in settings.values())])


def test_the_schema_has_secrets() -> None:
    assert {"postgres.password", "auth.master_secret"} <= set(SECRETS)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_no_secret_is_in_the_representation_of_settings(folder: Folder, environment: str) -> None:
    settings = folder.load(PRODUCTION | {"APP_ENV": environment})
    held = [
        value.get_secret_value()
        for section in settings.sections.values()
        for value in (getattr(section, setting.name) for setting in schema(type(section)))
        if isinstance(value, SecretStr)
    ]
    assert sorted(held) == sorted(REAL.values())
    shown = everything_shown(settings)
    assert not [secret for secret in held if secret in shown]
    assert [v.value for v in settings.values() if v.secret] == ["********"] * len(SECRETS)


def test_no_secret_is_in_a_report_of_problems_whatever_is_wrong_with_it(folder: Folder, tmp_path: Path) -> None:
    marks: list[str] = []

    def marked() -> str:
        marks.append(f"hunter2x{len(marks)}")
        return marks[-1]

    def nested(key: str, value: str) -> str:
        section, _, name = key.partition(".")
        return f"{section}:\n  {name}: {value}\n"

    reports: list[str] = []
    wrong = [
        lambda: f"[{marked()}]",
        lambda: f"{{deeper: {marked()}}}",
        lambda: f"!tagged {marked()}",
        lambda: f"*{marked()}",
        lambda: f'"{marked()}',
        lambda: f"{marked()}: x",
    ]
    for key in SECRETS:
        for make in wrong:
            folder.write(".secrets.yaml", nested(key, make()))
            reports.append(str(folder.refusal()))
        misplaced = f"{key.replace('.', ':' + chr(10) + '  ')}x: {marked()}\n"  # an unknown key
        folder.write(".secrets.yaml", misplaced)
        reports.append(str(folder.refusal()))
        folder.write(".secrets.yaml", f"{key.partition('.')[0]}: {marked()}\n")  # for a section
        reports.append(str(folder.refusal()))
        folder.write(".secrets.yaml", f"postgres:\n  host:\n    {key.partition('.')[2]}: {marked()}\n")  # too deep
        reports.append(str(folder.refusal()))
        (folder.path / ".secrets.yaml").unlink()
        both = tmp_path / "both"
        both.write_text(marked())
        name = environment_name(key)
        reports.append(str(folder.refusal({name: marked(), f"{name}_FILE": str(both)})))
    reports.append(str(folder.refusal({"AUTH_MASTER_SECRET": marked()})))  # too short
    reports.append(str(folder.refusal({"APP_ENV": "production", **{environment_name(k): marked() for k in SECRETS}})))
    assert len(marks) == 11 * len(SECRETS) + 1 + len(SECRETS)
    assert not [mark for mark in marks if any(mark in report for report in reports)]


# Staging and production

DISGUISES: dict[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "title case": str.title,
    "space around": lambda text: f" {text}\t\n",
    "space between": " ".join,
    "no hyphens": lambda text: text.replace("-", ""),
    "underscores": lambda text: text.replace("-", "_"),
    "quoted": lambda text: f'"{text}"',
    "quoted twice": lambda text: f"'\"{text}\"'",
    "doubled": lambda text: text * 2,
    "a digit more": lambda text: text + "1",
    "wide letters": lambda text: "".join(chr(ord(c) + 0xFEE0) for c in text),
    "invisible characters": "\u200b".join,
}


@pytest.mark.parametrize("environment", ["staging", "production"])
class TestOutsideLocalAndTest:
    def test_real_secrets_and_a_server_are_enough(self, folder: Folder, environment: str) -> None:
        settings = folder.load(PRODUCTION | {"APP_ENV": environment})
        assert settings.environment == environment
        assert settings[LoggerSettings].format == "json"
        assert settings[PostgresSettings].ssl != "disable"

    @pytest.mark.parametrize("value", [None, ""])
    def test_a_secret_of_something_that_need_not_be_there_may_be_missing(
        self, folder: Folder, environment: str, value: str | None
    ) -> None:
        names = [environment_name(key) for key in OPTIONAL]
        environ = {k: v for k, v in PRODUCTION.items() if k not in names} | {"APP_ENV": environment}
        if value is not None:
            environ |= dict.fromkeys(names, value)
        assert folder.load(environ)[SentinelSettings].notify_urls.get_secret_value() == ""

    @pytest.mark.parametrize("key", REQUIRED)
    @pytest.mark.parametrize("value", [None, ""])
    def test_a_missing_secret_is_refused_once(
        self, folder: Folder, environment: str, key: str, value: str | None
    ) -> None:
        name = environment_name(key)
        environ = {k: v for k, v in PRODUCTION.items() if k != name} | {"APP_ENV": environment}
        if value is not None:
            environ[name] = value
        made = ", such as the output of `openssl rand -base64 32`" if key == "auth.master_secret" else ""
        expected = f"missing secret; set {name} or {name}_FILE{made}"
        assert [(k, m) for k, _, m in folder.problems(environ)] == [(key, expected)]

    def test_a_secret_that_stands_in_no_file_is_refused_once(self, folder: Folder, environment: str) -> None:
        text = (folder.path / "default.yaml").read_text()
        folder.write("default.yaml", text.replace('  password: ""\n', ""))
        environ = {k: v for k, v in PRODUCTION.items() if k != "POSTGRES_PASSWORD"} | {"APP_ENV": environment}
        assert [(k, s) for k, s, _ in folder.problems(environ)] == [("postgres.password", "nowhere")]

    @pytest.mark.parametrize("origin", ["local.yaml", "test.yaml", "default.yaml"])
    @pytest.mark.parametrize("key", SECRETS)
    def test_a_secret_that_stands_in_a_committed_file_is_refused(
        self, folder: Folder, environment: str, key: str, origin: str
    ) -> None:
        known = "a-secret-that-everybody-knows-because-it-is-committed"
        known = {"redis.url": f"redis://:{known}@cache", "nats.url": f"nats://{known}@nats"}.get(key, known)
        section, _, name = key.partition(".")
        content = yaml.YAML(typ="safe").load((folder.path / origin).read_text())
        content.setdefault(section, {})[name] = known
        with (folder.path / origin).open("w") as file:
            yaml.YAML().dump(content, file)
        variable = environment_name(key)
        [(found, source, message)] = folder.problems(PRODUCTION | {"APP_ENV": environment, variable: known})
        assert (found, source) == (key, variable)
        assert "a published default" in message

    def test_a_secret_of_this_machine_is_accepted(self, folder: Folder, environment: str) -> None:
        folder.write(".secrets.yaml", f"auth:\n  master_secret: {REAL['AUTH_MASTER_SECRET']}\n")
        environ = {k: v for k, v in PRODUCTION.items() if k != "AUTH_MASTER_SECRET"} | {"APP_ENV": environment}
        assert source_of(folder.load(environ), "auth.master_secret") == "settings/.secrets.yaml"

    def test_the_files_of_local_and_test_need_not_be_there(self, folder: Folder, environment: str) -> None:
        (folder.path / "local.yaml").unlink()
        (folder.path / "test.yaml").unlink()
        assert folder.load(PRODUCTION | {"APP_ENV": environment}).environment == environment

    @pytest.mark.parametrize("key", REQUIRED)
    @pytest.mark.parametrize("value", [" " * 40, "\u00a0" * 40, "\t\r", "\u200b" * 40, "x" * 40, "x X x", '"', "0 0"])
    def test_a_secret_that_is_blank_or_one_character_over_and_over_is_refused_once(
        self, folder: Folder, environment: str, key: str, value: str
    ) -> None:
        variable = environment_name(key)
        [(found, source, message)] = folder.problems(PRODUCTION | {"APP_ENV": environment, variable: value})
        assert (found, source) == (key, variable)
        assert "32 characters" in message or "blank, or a repeated character" in message

    @pytest.mark.parametrize("change", DISGUISES)
    @pytest.mark.parametrize("origin", ["local.yaml", "test.yaml"])
    def test_a_published_secret_is_known_in_every_spelling(
        self, folder: Folder, environment: str, origin: str, change: str
    ) -> None:
        published = yaml.YAML(typ="safe").load((ROOT / "settings" / origin).read_text())["auth"]["master_secret"]
        environ = PRODUCTION | {"APP_ENV": environment, "AUTH_MASTER_SECRET": DISGUISES[change](published)}
        for _ in ("with its file", "without it"):
            [(found, _, message)] = folder.problems(environ)
            assert (found, "a published default" in message) == ("auth.master_secret", True)
            (folder.path / origin).unlink(missing_ok=True)

    @pytest.mark.parametrize("value", ["true", "1", "on", "Yes"])
    def test_debugging_is_refused(self, folder: Folder, environment: str, value: str) -> None:
        environ = PRODUCTION | {"APP_ENV": environment, "HTTP_SERVER_DEBUG": value}
        assert folder.problems(environ) == [
            ("http_server.debug", "HTTP_SERVER_DEBUG", "must be false outside local and test")
        ]

    @pytest.mark.parametrize("value", ["false", "0", "off", "No"])
    def test_debugging_may_be_switched_off_in_any_spelling(self, folder: Folder, environment: str, value: str) -> None:
        environ = PRODUCTION | {"APP_ENV": environment, "HTTP_SERVER_DEBUG": value}
        assert folder.load(environ)[HttpServerSettings].debug is False

    def test_an_embedded_server_is_refused(self, folder: Folder, environment: str) -> None:
        environ = PRODUCTION | {"APP_ENV": environment, "POSTGRES_HOST": ""}
        assert [p[:2] for p in folder.problems(environ)] == [("postgres.host", "POSTGRES_HOST")]


# The schema and the files of this project


def test_every_key_of_the_schema_has_a_description() -> None:
    assert [key for key, meaning in SCHEMA.items() if not meaning] == []


def in_file(name: str) -> set[str]:
    content: dict[str, dict[str, Any]] = yaml.YAML(typ="safe").load((ROOT / "settings" / name).read_text())
    return {f"{section}.{key}" for section, keys in content.items() for key in keys}


def test_default_yaml_has_every_key_that_has_no_default_in_its_section_and_none_beyond_the_schema() -> None:
    needed = {setting.key for kind in sections() for setting in schema(kind) if setting.default is MISSING}
    assert needed <= in_file("default.yaml") <= set(SCHEMA)
    assert len(needed) > 40


def test_a_default_of_a_section_is_named_as_such_and_overridden_by_every_layer(folder: Folder) -> None:
    def audience(environ: Mapping[str, str] | None = None) -> tuple[str, str]:
        settings = folder.load(environ)
        return settings[AuthSettings].audience, source_of(settings, "auth.audience")

    assert audience() == (NAME, "built-in")
    folder.append("default.yaml", "  audience: of-default")
    assert audience() == ("of-default", "settings/default.yaml")
    assert audience({"AUTH_AUDIENCE": "of-environment"}) == ("of-environment", "AUTH_AUDIENCE")


def test_values_are_shown_in_units_that_fit_them(folder: Folder) -> None:
    environ = {
        "KEEP_AUDIT": "400d",
        "PROCESS_GRACE": "90s",
        "QUEUE_LEASE": "60000ms",
        "KEEP_EVENTS": "36h",
        "HTTP_SERVER_BODY_TIMEOUT": "5ms",
        "PROCESS_DRAIN_DELAY": "0",
        "TELEMETRY_TRACE_RATIO": "0.25",
    }
    shown = {environment_name(value.key): value.text for value in folder.load(environ).values()}
    assert [shown[name] for name in environ] == ["400d", "90s", "1m", "36h", "5ms", "0s", "0.25"]


def test_secrets_can_be_found_elsewhere_than_in_the_environment(folder: Folder) -> None:
    def vault(variable: str) -> tuple[str, str] | None:
        return (REAL[variable], "vault") if variable == "AUTH_MASTER_SECRET" else None

    environ = {"APP_ENV": "test", "AUTH_MASTER_SECRET": "not-asked-for", "POSTGRES_USER": "of-environment"}
    settings = load(folder.root, sections(), environ, secrets=vault)
    assert settings[AuthSettings].master_secret.get_secret_value() == REAL["AUTH_MASTER_SECRET"]
    assert source_of(settings, "auth.master_secret") == "vault"
    assert settings[PostgresSettings].user == "of-environment"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_settings_of_every_environment_are_valid(folder: Folder, environment: str) -> None:
    assert in_file(f"{environment}.yaml") <= set(SCHEMA)
    needed = {} if environment in ("local", "test") else PRODUCTION
    assert folder.load({**needed, "APP_ENV": environment}).environment == environment


def test_every_setting_has_environment_variables_of_its_own() -> None:
    names = [environment_name(key) for key in SCHEMA]
    names += [f"{name}_FILE" for name in names]
    assert len(names) == len(set(names))
    assert "APP_ENV" not in names


# The command


def test_a_process_that_is_misconfigured_in_many_ways_says_all_of_it_and_no_secret(cli: Project) -> None:
    done = cli.app(
        "run-auth-http",
        env={
            "APP_ENV": "production",
            "HTTP_SERVER_PORT": "many",
            "HTTP_SERVER_DEBUG": "true",
            "POSTGRES_PASSWORD": "hunter2",
            "POSTGRES_STATEMENT_TIMEOUT": "never",
            "AUTH_MASTER_SECRET": "hunter2-too-short",
            "LOGGER_FORMAT": "yaml",
        },
    )
    assert done.returncode == 78
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "app: settings for APP_ENV=production: 7 problems"
    assert [line.split()[0] for line in lines[1:-1]] == [
        "http_server.port",
        "postgres.statement_timeout",
        "logger.format",
        "auth.master_secret",
        "http_server.debug",
        "postgres.host",
        "auth.issuer",
    ]
    assert "hunter2" not in done.stderr


# As a person means it


WHOLE = [
    "5.0",
    "1_000",
    " 5",
    "5 ",
    "+5",
    "\N{ARABIC-INDIC DIGIT FIVE}",
    "\N{FULLWIDTH DIGIT FIVE}",
    "0x10",
    "010",
    "1e3",
    "",
]
INTEGERS = [setting.key for kind in sections() for setting in schema(kind) if setting.type is int]


@pytest.mark.parametrize("written", WHOLE)
def test_a_whole_number_is_written_in_digits(folder: Folder, written: str) -> None:
    assert len(INTEGERS) > 5
    problems = folder.problems({environment_name(key): written for key in INTEGERS})
    assert {key for key, _, _ in problems} == set(INTEGERS)
    assert all(f"digits only, such as 10), got {written!r}" in message for _, _, message in problems)


@pytest.mark.parametrize("written", ["5.0", "1_000", "+5", "0x10", "011", "1e3", "true"])
def test_a_whole_number_in_a_file_is_written_in_digits_too(folder: Folder, written: str) -> None:
    folder.append("test.yaml", f"postgres:\n  pool_size: {written}")
    [(key, source, message)] = folder.problems()
    assert (key, source) == ("postgres.pool_size", "settings/test.yaml")
    assert message.endswith(f"got {written!r}")
    overridden = folder.load({"POSTGRES_POOL_SIZE": "7"})
    assert overridden[PostgresSettings].pool_size == 7


DIRECTIVES = {
    "http_server__port: 99": "http_server__port",
    "dynaconf_merge: true": "dynaconf_merge",
    "DYNACONF_INCLUDE: [test.yaml]": "DYNACONF_INCLUDE",
    "loaders_for_dynaconf: [os]": "loaders_for_dynaconf",
    "AUTO_CAST_FOR_DYNACONF: true": "AUTO_CAST_FOR_DYNACONF",
    "postgres.port: 99": "postgres.port",
    "'@jinja x': 1": "@jinja x",
    "1: 2": "1",
    "http_server:\n  dynaconf_merge: true": "http_server.dynaconf_merge",
    "http_server:\n  dynaconf_merge_unique: true": "http_server.dynaconf_merge_unique",
    "http_server:\n  trusted_proxies__0: x": "http_server.trusted_proxies__0",
    "http_server:\n  '@merge': x": "http_server.@merge",
}


@pytest.mark.parametrize("text", DIRECTIVES)
def test_a_key_that_dynaconf_would_obey_is_unknown(folder: Folder, text: str) -> None:
    folder.append("test.yaml", text)
    [(key, source, message)] = folder.problems()
    assert (key, source) == (DIRECTIVES[text], "settings/test.yaml")
    assert message.startswith("unknown key")


CASTS = ["@jinja {{ 7 * 7 }}", "@format {env[PATH]}", "@int 5", "@json [1]", "@none", "@empty", "@merge x", "@del",
         "@reset x", "@get postgres.user", "@read_file /etc/hostname", "{env[PATH]}", "@bool yes"]  # fmt: skip


@pytest.mark.parametrize("text", CASTS)
@pytest.mark.parametrize("place", ["a file", "the environment", "a file that the environment names"])
def test_what_looks_like_a_cast_is_text(folder: Folder, monkeypatch: pytest.MonkeyPatch, text: str, place: str) -> None:
    monkeypatch.setenv("AUTO_CAST_FOR_DYNACONF", "true")
    environ = {}
    if place == "a file":
        folder.append("test.yaml", f"postgres:\n  user: '{text}'")
    elif place == "the environment":
        environ = {"POSTGRES_USER": text}
    else:
        (folder.root / "user").write_text(text)
        environ = {"POSTGRES_USER_FILE": str(folder.root / "user")}
    assert folder.load(environ)[PostgresSettings].user == text


@pytest.mark.parametrize(
    "variable",
    ["SETTINGS_FILE", "INCLUDES", "PRELOAD", "SECRETS", "CORE_LOADERS", "LOADERS", "ENVIRONMENTS", "NESTED_SEPARATOR",
     "VAULT_ENABLED", "REDIS_ENABLED", "SKIP_LOADERS", "YAML_LOADER", "MERGE_ENABLED"],
)  # fmt: skip
def test_dynaconfs_own_variables_change_nothing(folder: Folder, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    other = folder.root / "other.yaml"
    other.write_text("postgres:\n  user: of-other\n")
    before = folder.load().values()
    for value in (str(other), "true", "[]", "_"):
        monkeypatch.setenv(f"{variable}_FOR_DYNACONF", value)
        assert folder.load().values() == before
    assert os.environ[f"{variable}_FOR_DYNACONF"] == "_"


def test_a_file_of_settings_may_begin_with_a_byte_order_mark(folder: Folder) -> None:
    file = folder.root / "settings" / "test.yaml"
    file.write_text(file.read_text() + "\npostgres:\n  user: marked\n", encoding="utf-8-sig")
    assert folder.load()[PostgresSettings].user == "marked"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("POSTGRES_HOST", "postgresql://app:p1anted@db/app", "not a URL"),
        ("POSTGRES_DIRECT_HOST", "app:p1anted@db", "not a URL"),
        ("HTTP_SERVER_HOST", "http://p1anted@db", "not a URL"),
        ("POSTGRES_PORT", "p1anted@db:5432", "a valid integer"),
        ("POSTGRES_PORT", f"p1anted{'x' * 100}@db:5432", "a valid integer"),
        ("TELEMETRY_OTLP_ENDPOINT", "ftp://user:p1anted@collector", ""),
    ],
)
def test_a_password_in_a_misplaced_url_is_not_shown(variable: str, value: str, said: str) -> None:
    environ = {"APP_ENV": "test", variable: value}
    if said:
        with pytest.raises(Misconfigured, match=said) as caught:
            load(ROOT, sections(), environ)
        shown = str(caught.value)
    else:
        shown = repr(load(ROOT, sections(), environ).values())
    assert "***@" in shown
    assert "p1anted" not in shown
