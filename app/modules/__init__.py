"""The modules of this product. A new module is a folder here and its name below."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.kernel.module import Module

MODULES = ("auth", "platform")
_ADDED: list[str] = []


def add(name: str) -> None:
    """Add a module to this process alone, as `app demo` does."""
    _ADDED.append(name)


def modules() -> "list[Module]":
    """Return the manifests, in the order above. A manifest imports none of the parts that it names."""
    return [_manifest(name) for name in (*MODULES, *_ADDED)]


def _manifest(name: str) -> "Module":
    package = f"{__name__}.{name}"
    try:
        return import_module(package).MODULE
    except (ModuleNotFoundError, AttributeError) as error:
        if error.name not in (package, "MODULE"):
            raise
        from app.kernel.queue import InvalidDeclaration

        text = f"MODULES names {name!r}, but {name}/__init__.py has no MODULE = Module(...)"
        raise InvalidDeclaration(text) from None
