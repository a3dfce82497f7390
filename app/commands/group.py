"""The groups of commands of modules: what their features declare, and what is written by hand."""

import typer

from app.commands.once import run_once
from app.kernel.actions.commands import add_commands
from app.kernel.cli import group
from app.modules import modules


def typer_app(name: str) -> typer.Typer:
    """Return the group of a name."""
    [module] = [module for module in modules() if name in module.groups()]
    found = module.load("cli:typer_app")(name) if name in module.commands else group(module.groups()[name])
    add_commands(found, name, module.feature_classes(name), run_once)
    return found
