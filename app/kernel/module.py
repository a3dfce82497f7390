"""The manifest of a module. `app --help` reads all manifests, so this file avoids dataclasses (6 ms to import)."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from app.kernel.config import Section
    from app.kernel.db.export import Personal
    from app.kernel.doctor import Check
    from app.kernel.process import Process, Provider
    from app.kernel.queue import Schedule


class Catalogue(NamedTuple):
    """The permissions that can be granted: name to description."""

    permissions: Mapping[str, str]


class Feature(NamedTuple):
    """A feature class of a module as `file:Class`, and the group of its commands, if any.

    One feature of a group has the summary of the group.
    """

    where: str
    group: str = ""
    summary: str = ""


class Module(NamedTuple):
    """The parts of a module. `file:NAME` is relative to its package, and loaded on demand.

    `settings` is a section, `providers` a mapping of types to providers, `schedules` a sequence, and so are the
    `checks` of `doctor`. `banner` is a function that returns title and text of its line in the banner of
    run-all-in-one, or None; it takes the process, and how the command is called. `commands` are the groups that
    `cli.py` adds commands to; those without a feature have a summary here.
    """

    package: str
    summary: str
    permissions: Mapping[str, str] = MappingProxyType({})
    features: tuple[Feature, ...] = ()
    settings: str = ""
    providers: str = ""
    schedules: str = ""
    checks: str = ""
    banner: str = ""
    personal: str = ""
    """Rules of personal data for a scrubbed export: a mapping of app.kernel.db.export."""
    commands: Mapping[str, str] = MappingProxyType({})
    constraints: Mapping[str, str] = MappingProxyType({})
    """`schema.constraint` to the refusal of its violation, as `file:Class`."""
    serves: bool = True
    """Whether the module has routes, and so a process run-NAME-http."""
    console: bool = False
    """Whether its process has the console, which shows the actions of all modules."""

    @property
    def name(self) -> str:
        """Name of the module."""
        return self.package.rpartition(".")[2]

    @property
    def process(self) -> str:
        """Summary of its process run-NAME-http; empty without one."""
        return f"Serve the {self.name} API." if self.serves and self.features else ""

    def load(self, where: str) -> Any:
        """Import `file:NAME`. Raises InvalidDeclaration when it does not exist."""
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
        """Import the features, or those of a group of commands."""
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

    def scrubbed(self) -> "Personal | None":
        """Import the rules of personal data; None without any."""
        return self.load(self.personal) if self.personal else None

    def checked(self) -> "tuple[Check, ...]":
        """Import the checks of `doctor`."""
        return tuple(self.load(self.checks)) if self.checks else ()

    async def banner_line(self, p: "Process", program: str) -> tuple[str, str] | None:
        """Return its line of the banner, if there is one now."""
        return await self.load(self.banner)(p, program) if self.banner else None

    def groups(self) -> dict[str, str]:
        """Return the groups of commands with their summaries."""
        return {**self.commands, **{f.group: f.summary for f in self.features if f.summary}}
