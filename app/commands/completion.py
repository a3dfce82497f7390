"""`app completion`."""

from enum import StrEnum
from typing import Annotated

import typer

from app.kernel.cli import single
from app.kernel.product import NAME


class Shell(StrEnum):
    """A shell that completes commands."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="Shell that reads the script.", metavar="SHELL")]) -> None:
    """Print the script that makes bash, zsh or fish complete commands and options with Tab.

    Evaluate it in ~/.bashrc, or in ~/.zshrc after compinit; fish reads it from its folder of completions. The command
    must be on the PATH.

    \b
    Examples:
      eval "$(app completion bash)"
      eval "$(app completion zsh)"
      app completion fish > ~/.config/fish/completions/app.fish
    """
    from typer._completion_shared import get_completion_script

    typer.echo(get_completion_script(prog_name=NAME, complete_var=f"_{NAME.upper()}_COMPLETE", shell=shell.value))


typer_app = single(completion)
