"""What providers declare that they use, so that missing settings are found before anything is opened."""

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
_USES = "__uses__"


def uses(*kinds: type[Any]) -> Callable[[F], F]:
    """Declare the types that a provider makes, and the sections of settings whose secrets it reads.

    Put it below `@asynccontextmanager`. A secret that is not declared is still checked, and fetched, when it is read.
    """

    def mark(provider: F) -> F:
        setattr(provider, _USES, kinds)
        return provider

    return mark


def used_by(provider: Callable[..., Any]) -> tuple[type[Any], ...]:
    """Return what a provider declares that it uses."""
    return getattr(provider, _USES, ())
