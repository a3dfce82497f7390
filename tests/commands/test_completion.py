"""Completion in bash, zsh and fish: what a person sees who presses Tab in the real shell."""

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from app.composition import checks
from app.kernel.product import NAME
from app.processes import PROCESSES
from tests.commands.outcome import misused
from tests.commands.terminal import Terminal
from tests.conftest import program
from tests.support.command_tree import NODES
from tests.support.project import ROOT, Project

APIS = sorted(name for name in PROCESSES if name.startswith("run-a"))
# what is typed, and what Tab makes of it or shows
COMPLETED = {"app migr": "app migrate ", "app migrate stat": "app migrate status "}
SHOWN = {
    "app run-a": APIS,
    "app migrate ": list(NODES["migrate"].command.commands),
    "app auth create-superuser --password-": ["--password-stdin", "--password-file"],
    "app completion ": ["bash", "zsh", "fish"],
    "app config validate run-a": APIS,
    "app systemd install run-a": APIS,
    "app config explain postgres.direct_": ["postgres.direct_host", "postgres.direct_port"],
    "app doctor --only se": [check.name for check in checks() if check.name.startswith("se")],
}
SET_UP = {
    "bash": 'PS1="ready> "; bind "set enable-bracketed-paste off"; eval "$(app completion bash)"',
    "zsh": 'PS1="ready> "; autoload -Uz compinit; compinit -u -D; eval "$(app completion zsh)"',
}
START = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}


@pytest.fixture
def on_path(cli: Project, tmp_path: Path) -> Project:
    """The project with `app` on the PATH, as installing it does."""
    script = tmp_path / "bin" / NAME
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\ncd {shlex.quote(str(ROOT))} && exec {shlex.quote(cli.python)} -m {NAME} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    cli.env |= {"PATH": f"{script.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb"}
    return cli


@pytest.mark.parametrize("name", START)
def test_tab_completes_commands_and_options(on_path: Project, tmp_path: Path, name: str) -> None:
    program(name)
    shell = Terminal(START[name], tmp_path, on_path.environment(), columns=200)
    try:
        shell.press(f"{SET_UP[name]}\n")
        shell.press("echo be''gin\n")
        shell.expect("begin\r\n", 60)
        for typed, whole in COMPLETED.items():
            shell.seen = ""
            shell.press(f"{typed}\t")
            shell.expect(whole)
            shell.press("\x15")  # Ctrl-U: the line is removed
        for typed, choices in SHOWN.items():
            shell.seen = ""
            shell.press(f"{typed}\t\t")
            for choice in choices:
                shell.expect(choice)
            shell.press("\x15")
    finally:
        shell.close()


def test_fish_completes_commands_and_options(on_path: Project, tmp_path: Path) -> None:
    program("fish")
    folder = tmp_path / ".config/fish/completions"
    folder.mkdir(parents=True)
    with (folder / f"{NAME}.fish").open("w") as file:
        subprocess.run([NAME, "completion", "fish"], env=on_path.environment(), stdout=file, check=True)
    typed = [*COMPLETED, *SHOWN]
    script = "; echo ---; ".join(f"complete -C {shlex.quote(line)}" for line in typed)
    done = subprocess.run(
        ["fish", "-c", script],
        env=on_path.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    found = [{line.split("\t")[0] for line in part.split("\n") if line} for part in done.stdout.split("---\n")]
    assert found[: len(COMPLETED)] == [{whole.split()[-1]} for whole in COMPLETED.values()]
    assert found[len(COMPLETED) :] == [set(choices) for choices in SHOWN.values()]
    assert re.search(r"^status\t\S+", done.stdout, re.MULTILINE), "fish shows what commands do"


def test_an_unknown_shell_is_named(cli: Project) -> None:
    assert "'bash', 'zsh', 'fish'" in misused(cli.app("completion", "tcsh"))
