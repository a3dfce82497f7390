"""Units for systemd, for the processes of an installation (systemd.unit(5), systemd.service(5), systemd.exec(5))."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from app.kernel.config import BackupSettings, HttpServerSettings, OperationsSettings, ProcessSettings, Settings
from app.kernel.errors import Invalid
from app.kernel.product import NAME
from app.kernel.sockets import BACKLOG, resolved

TARGET = f"{NAME}.target"
_MIGRATE = f"{NAME}-migrate.service"
_WATCHDOG_S = 30
_MEMORY = "512M"
_INSTANCES = 8
_AGENT_MEMORY = "1G"  # with the PostgreSQL on which drills restore
_START_S = 60
_SPARE_S = 5
_USAGE, _DATA, _CONFIGURATION = 2, 65, 78
_UNREACHABLE = ("/home", "/root", "/run/user")


class Role(NamedTuple):
    """A process as a unit: its command, its help, whether it serves an API, and whether a machine may have several."""

    command: str
    help: str
    serves: bool
    is_template: bool

    @property
    def unit(self) -> str:
        """The name of its service: `app-auth-http.service`, `app-event-consumer@.service`."""
        return f"{NAME}-{self.command.removeprefix('run-')}{'@' if self.is_template else ''}.service"

    @property
    def socket(self) -> str:
        """The name of the socket of its API."""
        return self.unit.replace(".service", ".socket")

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its units."""
        return (self.unit, self.socket) if self.serves else (self.unit,)

    @property
    def is_agent(self) -> bool:
        """Whether it stores backups."""
        return self.command == "run-backup-agent" or self.is_whole

    @property
    def is_whole(self) -> bool:
        """Whether it replaces all others on a machine."""
        return self.command == "run-all-in-one"


class Installation(NamedTuple):
    """What the units start: the command, the folder to start it in, if it matters, and the file of its settings."""

    command: tuple[str, ...]
    folder: Path | None
    environment_file: Path
    secrets: tuple[str, ...]
    """Settings that are passed as credentials."""


class Ports(NamedTuple):
    """The ports of a process: of its API, and of its operations endpoint."""

    http: int
    operations: int


def units(roles: Sequence[Role], settings: Settings, installation: Installation) -> dict[str, str]:
    """Return the text of each unit file by its name. Raises Invalid for settings that units cannot have."""
    ports = ports_of(roles, settings)
    found = {TARGET: _target(roles, ports), _MIGRATE: _migrate(settings, installation)}
    for role in roles:
        found[role.unit] = _service(role, roles, ports[role], settings, installation)
        if role.serves:
            found[role.socket] = _socket(role, roles, ports[role], settings)
    return found


def started(roles: Sequence[Role], chosen: Sequence[Role], settings: Settings) -> list[str]:
    """Return the units to enable for the chosen ones of all roles. A template has one instance."""
    ports = ports_of(roles, settings)
    found = [TARGET, _MIGRATE]
    for role in chosen:
        if role.serves:
            found.append(role.socket)
        found.append(role.unit.replace("@", f"@{ports[role].operations}"))
    return found


def ports_of(roles: Iterable[Role], settings: Settings) -> dict[Role, Ports]:
    """Return ports that do not collide on one machine, the first of them as in the settings.

    APIs have every tenth port, workers those between. Raises Invalid for port 0.
    """
    http, operations = settings[HttpServerSettings].port, settings[OperationsSettings].port
    for key, port in (("http_server.port", http), ("operations.port", operations)):
        if not port:
            raise Invalid(f"{key} is 0, and a unit needs a fixed port: set {key.replace('.', '_').upper()}")
    taken: set[int] = set()
    found: dict[Role, Ports] = {}
    for role in sorted(roles, key=lambda role: (not role.serves, role.is_agent, role.is_template)):
        if role.is_whole:  # alone on its machine
            found[role] = Ports(http, operations)
        elif role.serves:
            found[role] = Ports(_free(http, taken, 10), _free(operations, taken, 10))
        elif role.is_agent:  # after the instances of workers
            found[role] = Ports(0, _free(operations + _INSTANCES, taken, 1))
        else:
            found[role] = Ports(0, _free(operations, taken, 1))
    return found


def _free(port: int, taken: set[int], step: int) -> int:
    while port in taken:
        port += step
    if port > 65535:
        raise Invalid(f"there is no free port above {port - step} for another process; choose a lower one")
    taken.add(port)
    return port


def _target(roles: Sequence[Role], ports: dict[Role, Ports]) -> str:
    return "\n".join(
        [
            "[Unit]",
            f"Description={NAME}: its enabled processes",
            *(f"# {role.unit.removesuffix('.service')}: {_where(role, ports[role])}" for role in roles),
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
    )


def _where(role: Role, ports: Ports) -> str:
    if role.serves:
        return f"API on port {ports.http}, operations endpoint on {ports.operations}"
    instances = "; an instance is named after its port" if role.is_template else ""
    return f"operations endpoint on {ports.operations}{instances}"


def _socket(role: Role, roles: Sequence[Role], ports: Ports, settings: Settings) -> str:
    others = [other.socket for other in roles if role.is_whole and other != role and other.serves]
    return "\n".join(
        [
            "[Unit]",
            f"Description={_description(role)} (socket)",
            f"PartOf={TARGET}",
            *(f"Conflicts={name}" for name in others),
            "",
            "[Socket]",
            "# connections wait here while the process restarts",
            f"ListenStream={_address(settings[HttpServerSettings].host, ports.http)}",
            "FileDescriptorName=http",
            f"Backlog={BACKLOG}",
            "",
            "[Install]",
            f"WantedBy={TARGET}",
            "",
        ]
    )


def _address(host: str, port: int) -> str:
    """Return what ListenStream takes, which is no name. Raises Invalid."""
    try:
        _, (address, *_) = resolved(host, port)
    except (OSError, UnicodeError):
        raise Invalid(f"http_server.host {host!r} does not resolve; give an address of this machine") from None
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _service(role: Role, roles: Sequence[Role], ports: Ports, settings: Settings, installation: Installation) -> str:
    http, operations = settings[HttpServerSettings], settings[OperationsSettings]
    host, port = (http.host, str(ports.http)) if role.serves else (operations.host, str(ports.operations))
    others = [other.unit for other in roles if role.is_whole and other != role and not other.is_template]
    sockets = [role.socket] if role.serves else []
    where = ("--host", _escaped(host).replace("$", "$$"), "--port", "%i" if role.is_template else port)
    return "\n".join(
        [
            "[Unit]",
            f"Description={_description(role)}{' on port %i' if role.is_template else ''}",
            f"PartOf={TARGET}",
            "Wants=network-online.target",
            *(f"Requires={name}" for name in sockets),
            f"After=network-online.target nss-lookup.target postgresql.service {' '.join([_MIGRATE, *sockets])}",
            *(f"Conflicts={name}" for name in others),
            "# ten failures in five minutes end the attempts; `systemctl reset-failed` allows new ones",
            "StartLimitIntervalSec=300",
            "StartLimitBurst=10",
            "",
            "[Service]",
            "# notify, because notify-reload needs systemd 253; the process notifies of reloads all the same",
            "Type=notify",
            f"ExecStart={_command(installation, role.command, *where)}",
            "ExecReload=kill -HUP $MAINPID",
            *_environment(settings, installation, is_agent=role.is_agent),
            *([f"Environment=OPERATIONS_PORT={ports.operations}"] if role.serves else []),
            "# to load; then the process asks for the time that it needs",
            f"TimeoutStartSec={_START_S}",
            "# process.drain_delay, process.grace, and time to close",
            f"TimeoutStopSec={_seconds(settings[ProcessSettings].stop_s + _SPARE_S)}",
            "# the main process stops its workers",
            "KillMode=mixed",
            "# fed by the event loop; the log has the stack of what blocked it",
            f"WatchdogSec={_WATCHDOG_S}",
            "Restart=on-failure",
            "RestartSec=2",
            "# usage, bad data, configuration: another start would fail in the same way",
            f"RestartPreventExitStatus={_USAGE} {_DATA} {_CONFIGURATION}",
            "# above it the kernel kills; of several workers only the largest, which is replaced",
            f"MemoryMax={_AGENT_MEMORY if role.is_agent and not role.is_whole else _MEMORY}",
            "OOMPolicy=continue",
            *(_agent(role, settings) if role.is_agent else []),
            "",
            *_sandbox(installation),
            "",
            "[Install]",
            f"WantedBy={TARGET}",
            "",
        ]
    )


def _agent(role: Role, settings: Settings) -> Iterator[str]:
    """Yield where WAL is received and drills restore, what they may write, and that others come first."""
    yield "# for WAL on its way, and for drills: room for a copy of the database"
    yield f"CacheDirectory={NAME}"
    yield f"Environment=BACKUP_SCRATCH=%C/{NAME}"
    target = settings[BackupSettings].target
    if target.startswith("/"):
        yield f"ReadWritePaths={_escaped(target)}"
    if not role.is_whole:
        yield "Nice=10"
        yield "IOSchedulingClass=best-effort"
        yield "IOSchedulingPriority=7"


def _migrate(settings: Settings, installation: Installation) -> str:
    return "\n".join(
        [
            "[Unit]",
            f"Description={NAME}: apply migrations",
            f"PartOf={TARGET}",
            "Wants=network-online.target",
            "After=network-online.target nss-lookup.target postgresql.service",
            "",
            "[Service]",
            "Type=oneshot",
            f"ExecStart={_command(installation, 'migrate', 'up')}",
            *_environment(settings, installation, is_agent=False),
            "TimeoutStartSec=1h",
            "",
            *_sandbox(installation),
            "",
            "[Install]",
            f"WantedBy={TARGET}",
            "",
        ]
    )


def _description(role: Role) -> str:
    return f"{NAME} {role.command.removeprefix('run-')}: {role.help.rstrip('.')}"


def _environment(settings: Settings, installation: Installation, *, is_agent: bool) -> Iterator[str]:
    yield f"Environment=APP_ENV={settings.environment}"
    yield "# overrides of settings, such as POSTGRES_HOST"
    yield f"EnvironmentFile={_escaped(str(installation.environment_file))}"
    yield f"# from /etc/credstore/{NAME}.*, readable by root only; those that do not exist are not passed"
    for key in installation.secrets:
        if is_agent or not key.startswith(f"{BackupSettings.section}."):
            yield f"LoadCredential={key}:{NAME}.{key}"


def _command(installation: Installation, *arguments: str) -> str:
    """Return ExecStart. Raises Invalid for a path that systemd does not execute."""
    program, *words = installation.command
    if any(c in "\"'\\" or not c.isprintable() for c in program):
        raise Invalid(f"systemd starts no command with quotes or backslashes in its path: {program!r}; see --command")
    first = f'"{_escaped(program)}"' if " " in program or ";" in program else _escaped(program)
    return " ".join([first, *words, *arguments])


def _escaped(text: str) -> str:
    """Return a text without specifiers. Raises Invalid for a line break, after which another directive could follow."""
    if not text.isprintable():
        raise Invalid(f"a unit cannot have {text!r}: remove what is not printable")
    return text.replace("%", "%%")


def _seconds(seconds: float) -> str:
    return f"{seconds:.15g}"


def _sandbox(installation: Installation) -> Iterator[str]:
    """Yield who the process is and what it may do. It needs TCP, Unix sockets, and its own folders."""
    in_home = any(Path(word).resolve().is_relative_to(place) for word in installation.command for place in _UNREACHABLE)
    if installation.folder is not None:
        yield f"WorkingDirectory={_escaped(str(installation.folder))}"
        in_home = in_home or any(installation.folder.is_relative_to(place) for place in _UNREACHABLE)
    yield f"SyslogIdentifier={NAME}"
    yield "DynamicUser=yes"
    yield f"User={NAME}"
    yield f"StateDirectory={NAME}"
    yield f"LogsDirectory={NAME}"
    yield "Environment=XDG_STATE_HOME=%S"
    yield "UMask=0077"
    yield "LimitNOFILE=8192"
    yield "LimitCORE=0"
    yield f"ProtectHome={'read-only' if in_home else 'yes'}"
    yield from _HARDENING


_HARDENING = """\
ProtectSystem=strict
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
PrivateUsers=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM""".splitlines()
