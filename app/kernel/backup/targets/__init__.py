"""Targets: where backups are stored."""

import re
from pathlib import Path

from app.kernel.backup import Target
from app.kernel.config.backup import BackupSettings
from app.kernel.config.settings import Misconfigured

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*", re.ASCII)
_S3 = "s3://"


def target_of(settings: BackupSettings, data: Path) -> Target:
    """Return the target of the settings; a relative folder is below `data`. Raises Misconfigured without one."""
    if not settings.target:
        raise Misconfigured("backup.target is not set: a folder, or s3://BUCKET/PREFIX")
    if settings.target.startswith(_S3):
        from app.kernel.backup.targets.s3 import S3

        return S3.of(settings)
    from app.kernel.backup.targets.folder import Folder

    folder = Path(settings.target).expanduser()
    return Folder(folder) if folder.is_absolute() else Folder(data / folder, is_ours=True)


def checked(name: str) -> str:
    """Return the name of an object. Raises ValueError if it could be another file than it seems to be."""
    if not _NAME.fullmatch(name) or len(name) > 512:
        raise ValueError(f"not the name of an object: {name!r}")
    return name
