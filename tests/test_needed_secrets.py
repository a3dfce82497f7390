"""Each process and command asks for the secrets that it uses, and starts without the others."""

from pathlib import Path

import pytest

from app.cli import _translated, command
from app.processes import PROCESSES
from tests.support.command_tree import LEAVES, NODES
from tests.support.project import Project

SECRET = "9f2c7b1e64d8a05379bbce2410f6d83a5c"
ISSUER = "https://api.example.com"
PRODUCTION = {
    "APP_ENV": "production",
    "POSTGRES_HOST": "127.0.0.1",
    "POSTGRES_PORT": "1",  # nothing listens there
    "POSTGRES_SSL": "disable",
    "POSTGRES_PASSWORD": "rk3LwNvY8qZs",
    "POSTGRES_STARTUP_TIMEOUT": "1ms",
    "BACKUP_TARGET": "/dev/null/backups",
    "BACKUP_KEY": "t7Qp2xWm9LzR4vBn8KcF3yHd6JsG1aTe",
}
SIGNS = {
    "run-auth-http",
    "run-platform-http",
    "run-all-in-one",
    "auth keys list",
    "auth keys rotate",
    "auth keys rewrap",
    "config validate",  # of all processes
}
COMMANDS = [name for name in LEAVES if name not in PROCESSES and name != "systemd install"]  # which writes to /etc


def arguments(name: str, tmp_path: Path) -> list[str]:
    """Return the arguments that a command needs to begin its work."""
    password = tmp_path / "password"
    password.write_text("correct horse battery staple")
    known = {"password_file": str(password), "key": "auth.issuer"}
    given = [*NODES[name].path]
    for parameter in NODES[name].command.params:
        flag = [parameter.opts[-1]] if parameter.param_type_name == "option" else []
        if parameter.name in ("yes", "all"):
            given += flag
        elif parameter.required or parameter.name in known:
            given += [*flag, known.get(parameter.name, "a" * 8)]
    return given


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without a master secret, in this process."""
    monkeypatch.chdir(tmp_path)
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def status_of(*args: str) -> int:
    return _translated(lambda: command().main(args, prog_name="app", standalone_mode=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_asks_for_the_master_secret_exactly_when_it_signs_or_decrypts(
    name: str, production: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(name, tmp_path)
    status, said = status_of(*given), capsys.readouterr().err
    if name in SIGNS:
        assert status == 78, said
        assert "auth.master_secret" in said
        assert "hint: " in said
        assert "auth.issuer" in said
    else:
        assert status != 78, said
    production.setenv("AUTH_MASTER_SECRET", SECRET)
    production.setenv("AUTH_ISSUER", ISSUER)
    status, said = status_of(*given), capsys.readouterr().err
    assert status != 78, said
    assert SECRET not in said


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_asks_for_the_master_secret_exactly_when_it_signs_or_decrypts(name: str, cli: Project) -> None:
    done = cli.app(name, "--port", "0", env=PRODUCTION)
    if name in SIGNS:
        assert (done.returncode, "POSTGRES" in done.stderr) == (78, False)  # before anything is opened
        assert "app: settings for APP_ENV=production: 2 problems" in done.stderr
        assert "  auth.master_secret  settings/default.yaml  missing secret; set AUTH_MASTER_SECRET" in done.stderr
        assert "  auth.issuer " in done.stderr
        assert "hint: " in done.stderr
        done = cli.app(name, "--port", "0", env={**PRODUCTION, "AUTH_MASTER_SECRET": SECRET, "AUTH_ISSUER": ISSUER})
    assert done.returncode == 69, done.stderr
    assert "PostgreSQL at 127.0.0.1:1 does not answer" in done.stderr


@pytest.mark.parametrize("name", [None, *PROCESSES])
def test_validate_refuses_what_the_process_refuses_when_it_starts(
    name: str | None, production: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("config", "validate", *([name] if name else []))
    missing = {"auth.master_secret", "auth.issuer"} if name is None or name in SIGNS else set[str]()

    def refused() -> set[str]:
        assert status_of(*given) == (78 if missing else 0)
        said = capsys.readouterr().err
        return {key for key in ("auth.master_secret", "auth.issuer", "postgres.password") if key in said}

    assert refused() == missing
    production.delenv("POSTGRES_PASSWORD")
    missing |= {"postgres.password"}
    assert refused() == missing
    production.setenv("POSTGRES_PASSWORD", "${PASSWORD}")
    missing = {"postgres.password"}
    assert refused() == {"auth.master_secret", "auth.issuer", "postgres.password"}  # invalid: all is reported at once
    production.setenv("POSTGRES_PASSWORD", PRODUCTION["POSTGRES_PASSWORD"])
    production.setenv("AUTH_MASTER_SECRET", SECRET)
    production.setenv("AUTH_ISSUER", ISSUER)
    missing.clear()
    assert refused() == set()


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_asks_for_the_password_of_the_database_and_says_so_with_all_the_rest(
    name: str, cli: Project
) -> None:
    environ = {key: value for key, value in PRODUCTION.items() if key not in ("POSTGRES_PASSWORD", "POSTGRES_HOST")}
    done = cli.app(name, "--port", "0", env=environ)
    assert done.returncode == 78
    asked = ["postgres.host", "postgres.password"]
    asked += ["auth.issuer", "auth.master_secret"] if name in SIGNS else []
    lines = done.stderr.split("app: ")[1].splitlines()[1:]
    assert sorted(line.split()[0] for line in lines if line.startswith("  ")) == sorted(asked)
    assert [line for line in lines if line.startswith("hint: ")]
