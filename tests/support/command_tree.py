"""Every command as it really is, loaded."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

from typer.main import get_command

from app.cli import table
from app.kernel.product import NAME


class Node(NamedTuple):
    """A command or a group of commands, and how it is called."""

    path: tuple[str, ...]
    command: Any

    @property
    def is_group(self) -> bool:
        return hasattr(self.command, "commands")


def tree() -> Iterator[Node]:
    """Yield every command below the root."""

    def below(node: Node) -> Iterator[Node]:
        yield node
        if node.is_group:
            for name, found in node.command.commands.items():
                yield from below(Node((*node.path, name), found))

    for name, (module, _) in table().items():
        yield from below(Node((name,), get_command(import_module(module, NAME).typer_app(name))))


NODES = {" ".join(node.path): node for node in tree()}
LEAVES = [name for name, node in NODES.items() if not node.is_group]
GROUPS = [name for name, node in NODES.items() if node.is_group]
