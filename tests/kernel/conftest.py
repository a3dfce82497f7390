"""A database that each test of the kernel may change."""

from pathlib import Path

import pytest

from tests.conftest import TestDatabase
from tests.kernel.config_folder import Folder


@pytest.fixture
def migrated(database: TestDatabase) -> TestDatabase:
    return database


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A copy of the settings of this project, to change."""
    return Folder(tmp_path)
