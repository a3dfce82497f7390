"""A bucket of S3, or of storage that speaks its protocol, as a target of backups."""

from collections.abc import Iterable, Iterator
from typing import Self

from app.kernel.backup import Stored
from app.kernel.config.backup import BackupSettings
from app.kernel.config.settings import Misconfigured


class S3:
    """Objects are uploaded in parts, and become visible when the last is there."""

    def __init__(self, label: str) -> None:
        self.label = label

    @classmethod
    def of(cls, settings: BackupSettings) -> Self:
        """Return the target of the settings. Raises Misconfigured without boto3."""
        raise Misconfigured(f"backup.target: {settings.target}: S3 is not there yet")

    def put(self, name: str, content: Iterable[bytes], *, replace: bool = False) -> int:
        raise NotImplementedError

    def get(self, name: str) -> Iterator[bytes]:
        raise NotImplementedError

    def list(self, prefix: str = "") -> Iterator[Stored]:
        raise NotImplementedError

    def delete(self, names: Iterable[str]) -> None:
        raise NotImplementedError

    def clean(self, older_than_s: float) -> int:
        raise NotImplementedError
