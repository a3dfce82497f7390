"""The manifest of a module. Light, and no dataclass, which takes 6 ms to import: `app --help` reads all manifests."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from app.kernel.config import Section
    from app.kernel.process import Provider
    from app.kernel.queue import Schedule


class Catalogue(NamedTuple):
    """What can be granted: every permission that a module declares, with what it allows."""

    permissions: Mapping[str, str]


class Feature(NamedTuple):
    """A feature class of a module as `file:Class`; the group that its commands belong to, if any.

    One of the features of a group says what the group is for.
    """

    where: str
    group: str = ""
    summary: str = ""


class Module(NamedTuple):
    """What a module is made of. Names as `file:NAME` are relative to its package, and loaded where they are needed.

    `settings` is a section, `providers` a mapping of types to what provides them, `schedules` a sequence. What does not
    fit a declaration is written by hand: `commands` says which groups of commands `cli.py` adds to, and what those are
    for that no feature has.
    """

    package: str
    summary: str
    permissions: Mapping[str, str] = MappingProxyType({})
    features: tuple[Feature, ...] = ()
    settings: str = ""
    providers: str = ""
    schedules: str = ""
    commands: Mapping[str, str] = MappingProxyType({})
    constraints: Mapping[str, str] = MappingProxyType({})
    """What the loser of a race is told: `schema.constraint` to the refusal, as `file:Class`."""
    serves: bool = True
    """False when no action of its features has a route, so that there is no run-NAME-http."""

    @property
    def name(self) -> str:
        """The name of the module."""
        return self.package.rpartition(".")[2]

    @property
    def process(self) -> str:
        """What its HTTP process, run-NAME-http, is for; empty when there is none."""
        return f"Serve the {self.name} API." if self.serves and self.features else ""

    def load(self, where: str) -> Any:
        """Import what `file:NAME` names. Raises InvalidDeclaration for a file or a name that does not exist."""
        file, _, name = where.partition(":")
        path = f"{self.package}.{file}"
        try:
            found = import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path:
                raise
            raise self._names_nothing(where, f"there is no {file}.py") from None
        if not hasattr(found, name):
            raise self._names_nothing(where, f"{file}.py has no {name or 'name after the colon'}")
        return getattr(found, name)

    def _names_nothing(self, where: str, why: str) -> Exception:
        from app.kernel.queue import InvalidDeclaration

        return InvalidDeclaration(f"the manifest of the module {self.name} names {where!r}, but {why}")

    def feature_classes(self, group: str | None = None) -> Iterator[type[Any]]:
        """Import the features, or those whose commands form a group."""
        for feature in self.features:
            if group is None or feature.group == group:
                yield self.load(feature.where)

    def section(self) -> "type[Section] | None":
        """Import the section of settings."""
        return self.load(self.settings) if self.settings else None

    def provided(self) -> "Mapping[type[Any], Provider[Any]]":
        """Import the providers."""
        return self.load(self.providers) if self.providers else {}

    def scheduled(self) -> "tuple[Schedule, ...]":
        """Import the schedules."""
        return tuple(self.load(self.schedules)) if self.schedules else ()

    def groups(self) -> dict[str, str]:
        """Return the groups of commands, each with what it is for."""
        return {**self.commands, **{f.group: f.summary for f in self.features if f.summary}}
