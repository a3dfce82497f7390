"""Targets: where backups are stored."""

import re
from importlib.util import find_spec
from pathlib import Path

from app.kernel.backup import Target
from app.kernel.config.backup import BackupSettings
from app.kernel.config.settings import Misconfigured
from app.kernel.product import NAME

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*", re.ASCII)
S3_SCHEME = "s3://"


def target_of(settings: BackupSettings, data: Path) -> Target:
    """Return the target of the settings; a relative folder is below `data`. Raises Misconfigured without one."""
    if not settings.target:
        raise Misconfigured(
            "backup.target is not set: a folder, or s3://BUCKET/PREFIX", hint=f"{NAME} config explain backup.target"
        )
    if settings.target.startswith(S3_SCHEME):
        if find_spec("boto3") is None:
            raise Misconfigured(
                f"backup.target: {settings.target} needs the extra aws", hint="pip install 'boto3>=1.43'"
            )
        from app.kernel.backup.targets.s3 import S3

        return S3.of(settings)
    from app.kernel.backup.targets.folder import Folder

    folder = Path(settings.target).expanduser()
    return Folder(folder) if folder.is_absolute() else Folder(data / folder, is_ours=True)


def is_name(text: str) -> bool:
    """Return whether it can be the name of an object: relative, without `..` and hidden parts."""
    return len(text) <= 512 and _NAME.fullmatch(text) is not None


def checked(name: str) -> str:
    """Return the name of an object. Raises ValueError if it cannot be one."""
    if not is_name(name):
        raise ValueError(f"not the name of an object: {name!r}")
    return name
