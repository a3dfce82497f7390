"""Settings: what is never shown."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from app.kernel.config import (
    ENVIRONMENTS,
    Misconfigured,
    Settings,
    environment_name,
    load,
    schema,
)
from app.processes import sections
from tests.kernel.config_folder import PRODUCTION, REAL, SECRETS, Folder
from tests.support.project import ROOT, Project


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
