"""The modules of this product. A new module is a folder here and its name below."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.kernel.module import Module

MODULES = ("auth", "platform")


def modules() -> "list[Module]":
    """Return the manifests, in the order above. Importing them loads nothing of what they name."""
    return [import_module(f"{__name__}.{name}").MODULE for name in MODULES]
