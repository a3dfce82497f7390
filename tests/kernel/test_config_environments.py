"""Settings: each environment, its files, and what staging and production demand."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING
from typing import Any

import pytest
from dynaconf.vendor.ruamel import yaml

from app.kernel.config import (
    ENVIRONMENTS,
    HttpServerSettings,
    LoggerSettings,
    Misconfigured,
    PostgresSettings,
    SentinelSettings,
    current_environment,
    environment_name,
    load,
    schema,
)
from app.kernel.product import NAME
from app.modules.auth.settings import AuthSettings
from app.processes import sections
from tests.kernel.config_folder import OPTIONAL, PRODUCTION, REAL, REQUIRED, SCHEMA, SECRETS, Folder, source_of
from tests.support.project import ROOT


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
