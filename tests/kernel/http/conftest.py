"""A process that a file of tests shares, to send whatever to."""

from collections.abc import Iterator

import pytest

from tests.conftest import TestDatabase
from tests.support.project import ROOT, Project
from tests.support.raw import Served


@pytest.fixture(scope="module")
def plain_project(tmp_path_factory: pytest.TempPathFactory, template: TestDatabase) -> Iterator[Project]:
    made = Project(ROOT, tmp_path_factory.mktemp("protocol"), template.copy().env)
    yield made
    made.end()


@pytest.fixture(scope="module")
def plain(plain_project: Project) -> Iterator[Served]:
    """A process with the settings that it comes with, which nothing of a file may make complain."""
    process = plain_project.start("run-auth-http")
    served = Served(process, process.ready())
    yield served
    assert served.captured() == 0
    assert [line for line in process.logs() if line["level"] in ("error", "critical")] == []
    assert process.errors.read_text() == ""
