"""Fixtures of the commands."""

from collections.abc import Iterator

import pytest

from tests.commands.database import migrated_database
from tests.conftest import PostgresServer, TestDatabase
from tests.support.project import Project


@pytest.fixture(scope="module")
def migrated(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestDatabase]:
    """A database whose schema is current, shared by the tests of one file."""
    with migrated_database(postgres, tmp_path_factory.mktemp("migrated")) as created:
        yield created


@pytest.fixture
def on_migrated(cli: Project, migrated: TestDatabase) -> Project:
    """The project on a database whose schema is current."""
    cli.env |= migrated.env
    return cli
