"""A database whose schema is current, made once for the tests of a file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import PostgresServer, TestDatabase, create_database
from tests.support.project import ROOT, Project


@contextlib.contextmanager
def migrated_database(server: PostgresServer, scratch: Path) -> Iterator[TestDatabase]:
    created = create_database(server)
    done = Project(ROOT, scratch, dict(created.env)).app("migrate", "up")
    assert done.returncode == 0, done.stderr
    yield created
    TestDatabase(server, "app").run(f"DROP DATABASE {created.name} WITH (FORCE)")
