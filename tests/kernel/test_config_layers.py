"""Settings: which layer wins, and what is written means."""

import os
from collections.abc import Mapping

import pytest

from app.kernel.config import (
    PostgresSettings,
    ProcessSettings,
    QueueSettings,
    Settings,
    environment_name,
    schema,
)
from app.processes import sections
from tests.kernel.config_folder import Folder, source_of


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
