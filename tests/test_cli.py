"""The command line as its users meet it: help, mistakes, plain output, completion."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from app.cli import EXAMPLES, command, main, root_help
from app.kernel.product import NAME, VERSION
from tests.commands.outcome import misused, refused
from tests.commands.terminal import terminal
from tests.documentation.blocks import commands
from tests.support.command_tree import GROUPS, LEAVES, NODES
from tests.support.project import ROOT, Project, eventually

ESCAPE = "\x1b"


def run_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> tuple[Any, str, str]:
    """Run the command line in this process; return its status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["app", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    return (ended.value.code or 0, *capsys.readouterr())


def examples(text: str) -> list[str]:
    """Return the lines of the part "Examples:"."""
    match = re.search(r"^ *Examples:\n((?: +\S.*(?:\n|$))+)", text, re.MULTILINE)
    return [line.strip() for line in match[1].splitlines()] if match else []


def arguments(example: str) -> list[str]:
    """Return what stands behind `app` in an example, which may set variables and be part of a pipeline."""
    [words] = commands(re.split(r"\s{2,}", example)[0])  # the root's examples have remarks
    return words


def parse(words: list[str]) -> str:
    """Parse a command line as far as running it; return the name of the command."""
    name = max((n for n in NODES if words[: len(n.split())] == n.split()), key=len)
    NODES[name].command.make_context(name, words[len(name.split()) :]).close()
    return name


# Help


def test_the_command_tree_is_not_empty() -> None:
    assert {"run-all-in-one", "auth create-superuser", "migrate up", "config show", "health"} <= set(LEAVES)


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("name", ["", *NODES])
def test_help_works_on_every_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, option: str
) -> None:
    status, out, err = run_here(capsys, monkeypatch, *name.split(), option)
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: {' '.join(['app', *name.split()])} ")
    assert "-h, --help" in out


@pytest.mark.parametrize("name", LEAVES)
def test_the_help_of_a_command_has_examples_that_parse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _, out, _ = run_here(capsys, monkeypatch, *name.split(), "--help")
    found = examples(out)
    assert found
    assert {parse(arguments(example)) for example in found} == {name}


def test_the_examples_of_the_root_parse() -> None:
    found = [arguments(line.strip()) for line in EXAMPLES.splitlines()]
    assert len(found) >= 5
    assert [parse(words).split() for words in found] == [words[: len(parse(words).split())] for words in found]


def test_the_root_lists_every_command_and_every_option_of_the_command_line() -> None:
    listed = {line.split()[0] for line in root_help().splitlines() if line.startswith("  ")}
    assert {name.split()[0] for name in NODES} <= listed
    found = {option for param in command().params for option in param.opts}
    assert found <= {word.strip(",") for line in root_help().splitlines() for word in line.split()}


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_lists_all_of_its_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _, out, _ = run_here(capsys, monkeypatch, *name.split(), "--help")
    listed = {line.split()[0] for line in out.partition("Commands:\n")[2].splitlines() if line.strip()}
    assert set(NODES[name].command.commands) <= listed


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_without_a_command_shows_its_help_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    status, out, err = run_here(capsys, monkeypatch, *name.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"Usage: app {name} ")


def test_help_as_a_process_is_on_stdout_without_arguments_on_stderr(cli: Project) -> None:
    asked = cli.app("--help")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, f"{root_help()}\n", "")
    bare = cli.app()
    assert (bare.returncode, bare.stdout, bare.stderr) == (2, "", f"{root_help()}\n")
    below = cli.app("migrate", "status", "--help")
    assert (below.returncode, below.stderr) == (0, "")
    assert below.stdout.startswith("Usage: app migrate status")


@pytest.mark.parametrize("line", ["--version", "--version migrate", *(f"{name} --version" for name in NODES)])
def test_the_version_is_that_of_the_package_on_every_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    assert run_here(capsys, monkeypatch, *line.split()) == (0, f"{VERSION}\n", "")


def test_the_installed_script_is_this_command_line() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts.keys() == {NAME}
    module, _, name = scripts[NAME].partition(":")
    assert getattr(import_module(module), name) is main


def test_hints_name_the_requirements_of_the_extras_not_the_distribution() -> None:
    """`pip install 'app[redis]'` would install whoever has that name on the index."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = "\n".join(path.read_text() for path in (ROOT / "app").rglob("*.py"))
    wanted = [requirement for requirements in extras.values() for requirement in requirements]
    assert [requirement for requirement in wanted if requirement not in sources] == []
    assert re.findall(r"pip install '(?:app|\{NAME\})", sources) == []


# Mistakes


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("migrat", "No such command 'migrat'. Did you mean 'migrate'?"),
        ("run-auth-htp", "No such command 'run-auth-htp'. Did you mean 'run-auth-http'"),
        ("migrate statsu", "No such command 'statsu'. Did you mean 'status'?"),
        ("config sow", "No such command 'sow'. Did you mean 'show'?"),
        ("run-auth-http --prot 1", "No such option: --prot (Possible options: --host, --port)"),
        ("config show --jsn", "No such option: --jsn (Possible options: --json)"),
        ("auth create-superuser --user root", "No such option: --user (Possible options: --username)"),
        ("qqq", "No such command 'qqq'."),
        ("--qqq", "No such option: --qqq"),
        ("run-auth-http extra", "Got unexpected extra argument(s) (extra)"),
        ("auth create-superuser --password-stdin", "no terminal to ask on; give --username"),
        ("config explain", "Missing argument"),
        ("run-auth-http --port many", "Invalid value for '--port'"),
        ("run-auth-http --port 65536", "Invalid value for '--port'"),
        ("run-cron-manager --port=-1", "Invalid value for '--port'"),
        ("run-event-consumer --concurrency 0", "Invalid value for '--concurrency'"),
        ("run-cron-manager --queue mail", "No such option: --queue"),
        ("jobs show 1", "Invalid value for 'ID': must be a UUID, such as "),
        ("jobs list --state sleeping", "Invalid value for '--state': must be one of 'scheduled', 'ready'"),
        ("jobs list --limit 101", "Invalid value for '--limit': must be at most 100"),
        ("queues pause " + "x" * 129, "Invalid value for 'NAME': must have at most 128 characters"),
        ("schedules trigger " + "x" * 129, "Invalid value for 'NAME': must have at most 128 characters"),
        ("queues limit default", "give either a number or --none"),
        ("queues limit default 2 --none", "give either a number or --none"),
        ("queues limit default 0", "Invalid value for 'CONCURRENCY'"),
        *(
            (f"{line} {number}", "must be an integer ")
            for number in ("5.0", "1_000", "+5", "\u0665", "0x10", "010", "1e3", "9" * 30)
            for line in (
                *("jobs list --limit", "queues limit default", "health --port", "run-cron-manager --port"),
                "backup create --max-rate",
            )
        ),
        ("run-event-consumer --concurrency 1.0", "must be an integer from 1 to 10000, in decimal digits"),
        ("events list --from yesterday", "expected a time such as 2026-11-22T10:00:00Z"),
        ("backup restore --to 0001-01-01T00:00:00+14:00 --into x", "expected a time such as 2026-11-22T10:00:00Z"),
        ("backup restore --into=", "is empty: name a folder"),
        ("events replay --subscriber a", "Missing option '--from'"),
        ("dead-letters retry", "give one id, or --queue"),
        ("dead-letters retry 0190b3a0-0000-7000-8000-000000000001 --all", "give one id, or --queue"),
        ("dead-letters retry --queue a --all", "give one id, or --queue"),
        ("dead-letters retry --older-than 999999d", "expected a duration from 0s to 36500d"),
        ("dead-letters purge --older-than 99999999999999999999999d", "expected a duration from 0s to 36500d"),
        ("dead-letters purge --older-than nan", "expected a duration such as 30s, 5m, 12h or 7d"),
        ("errors mute 0190b3a0-0000-7000-8000-000000000001 --for 366d", "expected a duration from 1s to 365d"),
        ("errors mute 0190b3a0-0000-7000-8000-000000000001 --for 0", "expected a duration from 1s to 365d"),
        ("dead-letters purge --older-than old", "expected a duration such as 30s, 5m, 12h or 7d"),
        ("dead-letters purge --all --no-input", "say --yes"),
    ],
)
def test_a_mistake_is_named_on_stderr_with_what_is_near(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, error: str
) -> None:
    status, out, err = run_here(capsys, monkeypatch, *line.split())
    assert (status, out) == (2, "")
    assert err.startswith("Usage: app")
    assert error in err.splitlines()[-1]


def test_a_mistake_as_a_process_exits_2(cli: Project) -> None:
    assert "Did you mean 'migrate'?" in misused(cli.app("migrat"))


@pytest.mark.parametrize("line", ["auth create-superuser --username x", "migrate down"])
def test_a_closed_stdin_is_nobody_to_ask(cli: Project, line: str) -> None:
    misused(in_shell(cli, 'exec "$@" <&-', line))


def test_an_unexpected_error_is_70_with_what_to_report(cli: Project, tmp_path: Path) -> None:
    copy = cli.copy(tmp_path / "copy")
    broken = copy.root / "app" / "commands" / "health.py"
    broken.write_text(
        re.sub(r"(?m)^    settings = load_settings\(.*", "    raise RuntimeError('broken')", broken.read_text())
    )
    done = copy.app("health")
    assert (done.returncode, done.stdout) == (70, "")
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "RuntimeError: broken" in done.stderr
    assert done.stderr.splitlines()[-2:] == [
        "app: an internal error; please report it with the lines above",
        "hint: app support-bundle",
    ]


def test_an_expected_error_is_one_line(cli: Project) -> None:
    assert refused(cli.app("config", "explain", "nothing.at_all"), 67) == ("app: there is no setting nothing.at_all")


def test_an_error_sends_no_control_characters_to_the_terminal(cli: Project) -> None:
    line = refused(cli.app("config", "explain", "a.\x1b[2Jb\rc"), 67)
    assert line == r"app: there is no setting a.\x1b[2Jb\rc"


def test_a_closed_stdin_holds_no_password(cli: Project) -> None:
    shell = 'exec "$@" <&-'
    done = in_shell(cli, shell, "auth create-superuser --username root --password-stdin")
    assert refused(done, 1) == "app: cannot read the password from stdin: Bad file descriptor"


@pytest.mark.parametrize("line", ["config show --json", "config show", "--help", "--version", "migrate -h"])
def test_a_closed_stdout_is_an_error_and_a_closed_stderr_is_none(cli: Project, line: str) -> None:
    done = in_shell(cli, 'exec "$@" >&-', line)
    assert refused(done, 1) == "app: cannot write to stdout: Bad file descriptor"
    silent = in_shell(cli, 'exec "$@" 2>&-', line)
    assert (silent.returncode, silent.stderr) == (0, "")
    assert silent.stdout


def in_shell(project: Project, script: str, line: str) -> "subprocess.CompletedProcess[str]":
    shell = ["sh", "-c", script, "sh", project.python, "-m", "app", *line.split()]
    return subprocess.run(
        shell, cwd=project.root, env=project.environment(), capture_output=True, text=True, check=False
    )


def test_a_process_runs_without_standard_streams(project: Project, tmp_path: Path) -> None:
    log = tmp_path / "log"
    project.env |= {"LOGGER_OUTPUT": str(log)}
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", project.python, "-m", "app", "run-event-consumer"]
    process = subprocess.Popen([*shell, "--port", "0"], cwd=project.root, env=project.environment())
    try:
        eventually(lambda: log.exists() and '"url"' in log.read_text())
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()


def test_a_folder_that_cannot_be_written_to_is_one_line(cli: Project, tmp_path: Path) -> None:
    copy = cli.copy(tmp_path / "copy")
    (copy.root / "migrations").rename(tmp_path / "migrations")
    (copy.root / "migrations").write_text("no folder")
    line = refused(copy.app("migrate", "create", "auth", "later"), 1)
    assert line.startswith(f"app: {copy.root}/migrations/")
    assert line.endswith("_auth_later.sql: Not a directory")


@pytest.mark.parametrize("line", ["--help", "--version", "config show", "config show --json"])
def test_a_reader_that_leaves_early_is_no_error(cli: Project, line: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = cli_to(cli, line, writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("line", ["--help", "config show --json"])
def test_output_that_cannot_be_written_is_an_error(cli: Project, line: str) -> None:
    done = cli_to(cli, line, os.open("/dev/full", os.O_WRONLY))
    assert (done.returncode, done.stderr) == (1, "app: cannot write to stdout: No space left on device\n")


def cli_to(project: Project, line: str, stdout: int) -> "subprocess.CompletedProcess[str]":
    """Run a command with its stdout there, which is closed afterwards."""
    try:
        return subprocess.run(
            [project.python, "-m", "app", *line.split()],
            cwd=project.root,
            env=project.environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(stdout)


# Terminals


COLOURFUL = ["config show", "config explain postgres.ssl_root_cert"]


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
@pytest.mark.parametrize("line", [*COLOURFUL, "--help", "migrate -h", "migrat", "config explain nothing"])
def test_a_terminal_that_wants_no_colour_gets_no_escape_codes(
    cli: Project, line: str, variable: dict[str, str]
) -> None:
    with terminal(cli, *line.split(), env=variable) as shown:
        shown.wait()
    assert shown.seen.strip()
    assert ESCAPE not in shown.seen


def test_a_terminal_that_wants_colour_gets_it(cli: Project) -> None:
    with terminal(cli, "config", "show") as shown:
        assert shown.wait() == 0
    assert ESCAPE in shown.seen


def test_a_pipe_gets_no_escape_codes_and_no_line_is_cut(cli: Project) -> None:
    long = "https://" + "x" * 300
    done = cli.app("config", "show", env={"AUTH_ISSUER": long, "TERM": "xterm-256color", "COLUMNS": "40"})
    assert ESCAPE not in done.stdout + done.stderr
    assert [line.split() for line in done.stdout.splitlines() if "x" * 300 in line] == [
        ["auth.issuer", long, "AUTH_ISSUER"]
    ]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_table_fits_the_terminal_and_loses_nothing(cli: Project, columns: int) -> None:
    long = "https://" + "x" * 100
    with terminal(cli, "config", "show", env={"AUTH_ISSUER": long, "NO_COLOR": "1"}, columns=columns) as shown:
        assert shown.wait() == 0
    assert max(len(line) for line in shown.seen.splitlines()) <= columns
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown.seen
    assert shown.seen.count("x") >= 100


@pytest.mark.parametrize("name", ["", *NODES])
def test_help_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _, out, _ = run_here(capsys, monkeypatch, *name.split(), "--help")
    assert [line for line in out.splitlines() if len(line) > 80] == []
