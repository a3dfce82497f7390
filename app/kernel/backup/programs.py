"""Finds PostgreSQL's programs, and tells them where to connect."""

import glob
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from app.kernel.config.backup import BackupSettings
from app.kernel.config.settings import Misconfigured
from app.kernel.product import NAME

# Debian, Red Hat, Homebrew
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")
_SERVER, _CLIENT = "postgres", "pg_basebackup"
_LOOK = f"{NAME} config explain backup.programs"


def programs_for(version: int, settings: BackupSettings, embedded: Path | None, *, exact: bool) -> Path:
    """Return the folder of PostgreSQL's programs for a server of a version such as 180004.

    `exact`: with the server itself, of the same major version, as a data folder needs it. Otherwise those of clients,
    the newest, which must not be older than the server. Raises Misconfigured, naming the package.
    """
    major, program = version // 10_000, _SERVER if exact else _CLIENT
    found = {folder: of for folder in _folders(settings, embedded) if (of := _major(folder / program))}
    fit = [folder for folder, of in found.items() if (of == major if exact else of >= major)]
    if fit:
        return max(fit, key=lambda folder: (found[folder] == major, found[folder]))
    package = f"postgresql-{major}" if exact else f"postgresql-client-{major}"
    where = f"in {settings.programs}" if settings.programs else "here"
    others = sorted(set(found.values()))
    have = f"only {program} of version {', '.join(map(str, others))}" if others else f"no {program}"
    raise Misconfigured(
        f"the server is PostgreSQL {major}, and there is {have} {where} (backup.programs); install {package}",
        hint=f"apt-get install {package}" if not settings.programs else _LOOK,
    )


def connection_of(conninfo: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return libpq's parameters for a program, and the environment with the password, which others must not see."""
    parameters = conninfo_to_dict(conninfo)
    password = parameters.pop("password", None)
    if parameters.get("sslrootcert") == "system":  # libpq before 16 takes it for the name of a file
        parameters["sslrootcert"] = ssl.get_default_verify_paths().cafile or "system"
    return parameters, {"PGPASSWORD": str(password)} if password else {}


def _folders(settings: BackupSettings, embedded: Path | None) -> Iterator[Path]:
    if settings.programs:
        yield Path(settings.programs).expanduser()
        return
    if embedded:
        yield embedded
    for place in _PLACES:
        yield from (Path(path) for path in sorted(glob.glob(place)))  # noqa: PTH207 - the places are absolute
    if found := shutil.which(_SERVER) or shutil.which(_CLIENT):
        yield Path(found).parent


def _major(program: Path) -> int:
    """Return the major version of a program; 0 if it does not run here."""
    try:
        shown = subprocess.run([program, "--version"], capture_output=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return 0
    found = _VERSION.search(shown.stdout.decode(errors="replace"))
    return int(found[1]) if found else 0
