"""A deployment whose processes a test may treat as it likes."""

from pathlib import Path

import pytest

from tests.chaos.deployment import Deployment
from tests.conftest import TestDatabase
from tests.support.project import Project


@pytest.fixture
def deployment(cli: Project, database: TestDatabase, tmp_path: Path) -> Deployment:
    """The project with the module `chaos`, without processes."""
    folder = tmp_path / "chaos"
    folder.mkdir()
    return Deployment.of(cli, database, folder)
