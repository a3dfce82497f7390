"""Targets of backups: a folder, and S3 on a real server, with a proxy before it that fails on demand."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.kernel.backup import Target
from app.kernel.backup.targets.folder import Folder
from app.kernel.config import load
from app.kernel.config.backup import BackupSettings
from app.processes import sections
from tests.support.project import ROOT
from tests.support.seaweed import ACCESS, SECRET, Seaweed

_NOBODY = 65534


@cache
def _settings() -> BackupSettings:
    return load(ROOT, sections(), {"APP_ENV": "test"})[BackupSettings]


def settings_of(**changes: object) -> BackupSettings:
    """Return the settings of the test environment, with changes."""
    return replace(_settings(), **changes)


def s3_settings(seaweed: Seaweed, **changes: object) -> BackupSettings:
    """Return the settings of a bucket as target, with a prefix that no other test has."""
    usual = {
        "target": f"s3://{seaweed.bucket}/{uuid.uuid4().hex}",
        "s3_endpoint": seaweed.endpoint,
        "s3_access_key": ACCESS,
        "s3_secret_key": SecretStr(SECRET),
    }
    return settings_of(**{**usual, **changes})


def s3_of(seaweed: Seaweed, **changes: object) -> Target:
    """Return S3 as a target."""
    from app.kernel.backup.targets.s3 import S3

    return S3.of(s3_settings(seaweed, **changes))


def client_of(target: Target) -> object:
    """Return the client that S3 as a target uses, which takes long to make."""
    return vars(target)["_client"]


@pytest.fixture(scope="session")
def client(seaweed: Seaweed) -> object:
    """A client for all targets of S3 that need no other."""
    return client_of(s3_of(seaweed))


@pytest.fixture(params=["folder", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    """Each kind of target, empty."""
    if request.param == "s3":
        from app.kernel.backup.targets.s3 import S3

        return S3(request.getfixturevalue("client"), request.getfixturevalue("seaweed").bucket, f"{uuid.uuid4().hex}/")
    (tmp_path / "target").mkdir()
    return Folder(tmp_path / "target")


@dataclass(frozen=True)
class Unprivileged:
    """A folder of an account without privileges, which a test may become."""

    folder: Path

    @contextmanager
    def account(self) -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, _NOBODY, -1)
        os.seteuid(_NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)


@pytest.fixture
def unprivileged() -> Iterator[Unprivileged]:
    """A folder that is none of pytest's, since the account could not reach those."""
    with tempfile.TemporaryDirectory(prefix="app-backup-") as folder:
        yield Unprivileged(Path(folder))
