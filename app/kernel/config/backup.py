"""Settings of backups."""

import os
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, SecretStr

from app.kernel.config.sections import DURATION_FORM, IS_KEY, LATER, Duration, OptionalSecret

_HOUR, _DAY = 3600.0, 86400.0
_SHORTEST = 32
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")  # underscores and capitals: of old buckets, and of other storages
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9._-]+(:[0-9]+)?/?|https?://\[[0-9a-fA-F:.]+\](:[0-9]+)?/?")


def _key(value: SecretStr) -> SecretStr:
    if (text := value.get_secret_value()) and text != LATER and len(text) < _SHORTEST:
        raise ValueError(f"expected at least {_SHORTEST} random characters: openssl rand -base64 32")
    return value


def _folder(value: str) -> str:
    if value != value.strip():
        raise ValueError("expected a folder, without spaces around it")
    if value.startswith("~") and os.path.expanduser(value) == value:  # noqa: PTH111 - it does not raise
        raise ValueError(f"there is no user {value[1:].partition('/')[0]} here")
    return value


def _target(value: str) -> str:
    if "://" in value and not value.startswith("s3://"):
        raise ValueError("expected a folder, or s3://BUCKET/PREFIX")
    bucket = value.removeprefix("s3://").partition("/")[0]
    if value.startswith("s3://") and (not bucket or set("@:") & set(bucket)):  # a target is shown everywhere
        raise ValueError("expected s3://BUCKET/PREFIX; credentials are backup.s3_access_key and backup.s3_secret_key")
    if value.startswith("s3://") and not _BUCKET.fullmatch(bucket):
        raise ValueError("expected s3://BUCKET/PREFIX, with letters, digits, dots and hyphens in BUCKET")
    return _folder(value)


def _endpoint(value: str) -> str:
    if value and not _ENDPOINT.fullmatch(value):
        raise ValueError("expected http:// or https://, and a name or an address, such as https://s3.example.com")
    return value


BackupKey = Annotated[OptionalSecret, IS_KEY, AfterValidator(_key)]


@dataclass(frozen=True, slots=True)
class BackupSettings:
    """Backups of the database. Without a target there are none."""

    section: ClassVar[str] = "backup"
    engine: Annotated[
        Literal["builtin", "pgbackrest", "managed"],
        Field(description="who takes backups: the programs of PostgreSQL, pgBackRest, or the provider of the database"),
    ]
    target: Annotated[
        str,
        AfterValidator(_target),
        Field(description="where builtin stores backups: a folder, or s3://BUCKET/PREFIX; empty: no backups"),
    ]
    key: Annotated[BackupKey, Field(description="seals backups; keep a copy of it where the backups are not")]
    key_previous: Annotated[BackupKey, Field(description="the former key, which still opens older backups")]
    wal: Annotated[
        Literal["stream", "archive", "none"],
        Field(
            description="how WAL reaches the target: run-backup-agent streams it, archive_command of the server runs"
            " `backup archive-wal`, or not at all"
        ),
    ]
    wal_interval: Annotated[
        Duration, Field(ge=1, le=_HOUR, description="WAL is stored this often, also when a segment is not full")
    ]
    keep: Annotated[
        float,
        DURATION_FORM,
        Field(ge=_DAY, le=3650 * _DAY, description="every moment of this time can be restored"),
    ]
    keep_weekly: Annotated[int, Field(ge=0, le=520, description="older backups that are kept: one of each week")]
    keep_monthly: Annotated[int, Field(ge=0, le=120, description="older backups that are kept: one of each month")]
    max_age: Annotated[
        Duration, Field(ge=_HOUR, le=365 * _DAY, description="a newest backup older than this is reported")
    ]
    max_wal_lag: Annotated[
        Duration, Field(ge=10, le=_DAY, description="WAL that is stored later than this is reported")
    ]
    max_rate: Annotated[
        int,
        Field(
            ge=0, le=2**40, description="bytes per second that a scheduled backup reads from the server; 0: no limit"
        ),
    ]
    programs: Annotated[
        str,
        AfterValidator(_folder),
        Field(description="folder of PostgreSQL's programs; empty: the newest that fits the server is found"),
    ]
    scratch: Annotated[
        str,
        AfterValidator(_folder),
        Field(description="folder in which drills restore; empty: that of temporary files"),
    ]
    s3_endpoint: Annotated[
        str,
        Field(description="address of S3 storage that is not AWS's, such as https://s3.example"),
        AfterValidator(_endpoint),
    ]
    s3_region: Annotated[str, Field(description="region of the bucket; empty: that of the machine")]
    s3_access_key: Annotated[str, Field(description="access key; empty: the credentials of the machine")]
    s3_secret_key: Annotated[OptionalSecret, Field(description="secret of the access key")]
    pgbackrest_stanza: Annotated[str, Field(min_length=1, description="stanza of pgBackRest")]
    pgbackrest_config: Annotated[str, Field(description="configuration file of pgBackRest; empty: its default")]
    managed_status: Annotated[
        str, Field(description="command that prints, as JSON, which backups the provider has; see docs/backups.md")
    ]
    managed_restore: Annotated[
        str, Field(description="command that restores to a scratch server and prints its address; see docs/backups.md")
    ]

    @property
    def is_watched(self) -> bool:
        """Whether an agent stores WAL, or observes who does."""
        return self.engine != "builtin" or (self.wal != "none" and bool(self.target))
