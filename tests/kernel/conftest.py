"""Databases with the current schema."""

from collections.abc import Iterator

import pytest

from tests.commands.database import migrated_database
from tests.conftest import PostgresServer, TestDatabase, create_database


@pytest.fixture(scope="session")
def template(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestDatabase]:
    """A database to copy: that takes a tenth of the time of the migrations."""
    with migrated_database(postgres, tmp_path_factory.mktemp("template")) as made:
        yield made


@pytest.fixture
def migrated(postgres: PostgresServer, template: TestDatabase) -> Iterator[TestDatabase]:
    """A database of its own."""
    made = create_database(postgres, template.name)
    yield made
    TestDatabase(postgres, "app").run(f"DROP DATABASE {made.name} WITH (FORCE)")
