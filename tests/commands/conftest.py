"""Fixtures of the commands."""

from collections.abc import Iterator

import pytest

from tests.conftest import TestDatabase
from tests.support.project import Project


@pytest.fixture(scope="module")
def migrated(template: TestDatabase) -> Iterator[TestDatabase]:
    """A database whose schema is current, shared by the tests of one file."""
    created = template.copy()
    yield created
    created.drop()


@pytest.fixture
def on_migrated(cli: Project, migrated: TestDatabase) -> Project:
    """The project on a database whose schema is current."""
    cli.env |= migrated.env
    return cli
