"""`app systemd`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.kernel.cli import Json, NoInput, can_ask, confirm, group, print_json, starting
from app.kernel.errors import Refusal
from app.kernel.product import NAME
from app.processes import PROCESSES, check_process, load_settings, sections

if TYPE_CHECKING:
    from app.kernel.systemd.units import Installation, Role

_ETC = Path("/etc/systemd/system")
_app = group("Generate units for systemd.")

Roles = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PROCESS]...",
        help="Processes, such as run-auth-http.",
        show_default="all",
        autocompletion=starting(lambda: PROCESSES),
    ),
]
Command = Annotated[
    Path | None,
    typer.Option("--command", metavar="PATH", help="Command that the units run.", show_default="of this installation"),
]
EnvironmentFile = Annotated[
    Path, typer.Option("--environment-file", metavar="PATH", help="File of variables that override settings.")
]
_ENVIRONMENT_FILE = Path(f"/etc/{NAME}/{NAME}.env")


def typer_app(name: str) -> typer.Typer:  # noqa: ARG001 - the same for every name
    return _app


@_app.command("print")
def print_units(
    processes: Roles = None,
    command: Command = None,
    environment_file: EnvironmentFile = _ENVIRONMENT_FILE,
    as_json: Json = False,
) -> None:
    """Print units for the current settings: ports, timeouts, secrets, and the paths of this installation.

    \b
    Examples:
      APP_ENV=production app systemd print
      APP_ENV=production app systemd print run-auth-http
    """
    found = _Units(processes or [], command, environment_file).files
    if as_json:
        print_json({"items": [{"name": name, "content": text} for name, text in found.items()]})
    else:
        typer.echo("\n".join(f"# {name}\n{text}" for name, text in found.items()), nl=False)


@_app.command()
def install(
    processes: Roles = None,
    folder: Annotated[Path, typer.Option("--dir", metavar="PATH", help="Folder of the units.")] = _ETC,
    command: Command = None,
    environment_file: EnvironmentFile = _ENVIRONMENT_FILE,
    enable: Annotated[bool, typer.Option("--enable", help="Enable and start the units too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    no_input: NoInput = False,
) -> None:
    """Write units for the current settings into a folder. Safe to repeat.

    Shows what differs from the files that are there, and asks before it writes anything.

    \b
    Examples:
      APP_ENV=production app systemd install --dry-run
      APP_ENV=production app systemd install --enable --yes
    """
    from app.kernel.systemd.install import Folder, check_systemd, enabled

    wanted = _Units(processes or [], command, environment_file)
    if enable:
        check_systemd()
    for warning in wanted.warnings():
        sys.stderr.write(f"warning: {warning}\n")
    target = Folder(folder, wanted.files)
    for name, state in target.states.items():
        typer.echo(f"{state:<9}  {folder / name}")
    typer.echo(target.difference(), nl=False)
    if dry_run:
        return
    if changed := target.changed:
        if not yes and (no_input or not can_ask()):
            raise Refusal(f"{len(changed)} units would be written to {folder}; confirm with --yes")
        if not yes:
            confirm(f"Write {len(changed)} units to {folder}?")
        target.write()
    names = wanted.started()
    if enable:
        enabled(names)
    else:
        sys.stderr.write(f"next: systemctl daemon-reload && systemctl enable --now {' '.join(names)}\n")


class _Units:
    """The units of some processes, by the current settings. Raises NotFound for an unknown process."""

    def __init__(self, names: list[str], command: Path | None, environment_file: Path) -> None:
        from app.kernel.config import BackupSettings, HttpServerSettings, OperationsSettings, ProcessSettings
        from app.kernel.systemd.units import units

        for name in names:
            check_process(name)
        self._settings = load_settings(only=(BackupSettings, HttpServerSettings, OperationsSettings, ProcessSettings))
        self._installation = _installation(command, environment_file)
        self._roles = _roles()
        self._chosen = [role for role in self._roles if not names or role.command in names]
        self._named = bool(names)
        made = units(self._roles, self._settings, self._installation)
        left_out = {file for role in self._roles if role not in self._chosen for file in role.files}
        self.files = {name: text for name, text in made.items() if name not in left_out}

    def started(self) -> list[str]:
        """Return the units to enable: of the named processes, else all but the one that replaces all others."""
        from app.kernel.systemd.units import started

        return started(self._roles, [r for r in self._chosen if self._named or not r.is_whole], self._settings)

    def warnings(self) -> list[str]:
        """Return what keeps the units from starting as they are."""
        from app.kernel.systemd.install import unreachable

        found: list[str] = []
        if path := unreachable(self._installation):
            found.append(f"{path} is not readable by the user of the units; install {NAME} elsewhere, such as in /opt")
        if not self._installation.environment_file.exists():
            found.append(f"{self._installation.environment_file} does not exist; the units need it, even if empty")
        return found


def _roles() -> "list[Role]":
    from app.kernel.systemd.units import Role

    return [
        Role(name, spec.help, spec.listens == "http_server", spec.has_instances) for name, spec in PROCESSES.items()
    ]


def _installation(command: Path | None, environment_file: Path) -> "Installation":
    from app import IS_INSTALLED, ROOT
    from app.kernel.config import schema
    from app.kernel.systemd.units import Installation

    secrets = tuple(setting.key for kind in sections() for setting in schema(kind) if setting.is_secret)
    script = Path(sys.executable).with_name(NAME)
    words, folder = (sys.executable, "-m", NAME), None if IS_INSTALLED else ROOT
    if command is not None or (IS_INSTALLED and script.exists()):
        words, folder = (str((command or script).absolute()),), None
    return Installation(words, folder, environment_file.absolute(), secrets)
