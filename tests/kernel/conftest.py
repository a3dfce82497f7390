"""A database that each test of the kernel may change."""

import pytest

from tests.conftest import TestDatabase


@pytest.fixture
def migrated(database: TestDatabase) -> TestDatabase:
    return database
