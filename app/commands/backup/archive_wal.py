"""`app backup archive-wal`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.kernel.product import NAME

if TYPE_CHECKING:
    from app.kernel.backup.timelines import Header

_SEGMENT = Annotated[Path, typer.Argument(metavar="PATH", help="File of WAL: %p of archive_command.")]


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(archive_wal)


def archive_wal(path: _SEGMENT) -> None:
    """Store a file of WAL, as archive_command of the server. Safe to repeat.

    The status is 0 once it is stored durably. After any other one, the server keeps the file and tries again.
    In postgresql.conf: archive_command = 'app backup archive-wal %p'

    \b
    Examples:
      app backup archive-wal pg_wal/000000010000000000000007
    """
    # the server calls it for each segment: nothing is loaded that is not needed
    from app import DATA
    from app.kernel.backup.sealed import Keys
    from app.kernel.backup.targets import target_of
    from app.kernel.backup.timelines import is_backup_label
    from app.kernel.backup.wal import WalArchive
    from app.kernel.config import BackupSettings
    from app.processes import load_settings

    if is_backup_label(path.name):
        sys.stderr.write(f"{path.name} is not stored: it tells of a base backup, and nothing needs it\n")
        return
    header = _header(path)
    settings = load_settings(only=(BackupSettings,))
    settings.demand(BackupSettings)
    backup = settings[BackupSettings]
    archive = WalArchive(target_of(backup, DATA), Keys.of(backup), header.cluster, header.segment_bytes)
    archive.put(path, is_live=True)


def _header(path: Path) -> "Header":
    """Return what the file says of its cluster; a history says nothing, but the data folder that it is in does."""
    import struct

    from app.kernel.backup import BackupInvalid
    from app.kernel.backup.timelines import HEADER_BYTES, Header, header_of
    from app.kernel.errors import NotFound

    control = Path(path.parent, "..", "global", "pg_control")  # the server runs the command in the data folder
    if path.exists() and not path.is_file():  # to open a pipe would wait for who writes
        raise BackupInvalid(f"{path} is no file")
    try:
        with path.open("rb") as file:
            if found := header_of(file.read(HEADER_BYTES)):
                return found
        with control.open("rb") as file:
            return Header(0, 0, str(struct.unpack("=Q", file.read(8))[0]), 16 * 1024 * 1024)
    except FileNotFoundError as error:
        raise NotFound(f"there is no {error.filename}", hint=f"{NAME} config explain backup.wal") from None
    except (OSError, struct.error) as error:
        raise BackupInvalid(f"{path} cannot be read: {error}") from None
