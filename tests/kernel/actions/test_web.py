"""--web: the address of a list or of a row in the console."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from app.kernel.actions import Action, Signature
from app.kernel.actions.web import has_page, page_of
from app.kernel.console.pages import Pages
from app.kernel.http.codecs import JSON
from tests.conftest import TestDatabase
from tests.kernel.http.test_reference import every_action
from tests.support.project import Project

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
JOB = uuid.UUID("01a20304-51b9-712d-b52c-fd40df0b43e3")


@dataclass(frozen=True)
class Wanted:
    state: str | None = None
    since: datetime | None = None
    recurring: bool = True
    from_: str = ""


@dataclass(frozen=True)
class Ref:
    name: str


@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        ("/x/v1/jobs", Wanted(), "/console/jobs"),
        ("/x/v1/jobs", None, "/console/jobs"),
        ("/x/v1/dead-letters", Wanted(state="dead & gone"), "/console/dead-letters?state=dead+%26+gone"),
        ("/x/v1/jobs", Wanted(recurring=False, from_="a"), "/console/jobs?recurring=false&from=a"),
        ("/x/v1/jobs", Wanted(since=NOON), "/console/jobs?since=2026-11-22T12%3A00%3A00%2B00%3A00"),
        ("/x/v1/queues/{name}", Ref("a/b ?"), "/console/queues/a%2Fb%20%3F"),
    ],
)  # fmt: skip
def test_filters_are_in_the_address(path: str, given: Any, expected: str) -> None:
    assert page_of(Action("x.y", False, "GET", path), given) == expected


def test_every_command_that_has_it_has_a_page() -> None:
    operations = every_action()
    pages = Pages(operations, lambda *_: None)  # type: ignore[arg-type]
    with_page = [each for each in operations if each.action.command and has_page(each.action, each.signature)]
    assert len(with_page) > 8
    for each in with_page:
        parent, _, last = each.action.path.rpartition("/")
        slug = parent.rpartition("/")[2] if last.startswith("{") else last
        reading = pages.by_slug[slug]
        shown = reading if reading.path == each.action.path else reading.item
        assert shown is not None, each.id
        assert shown.path == each.action.path, each.id
        assert shown.run is not None, each.id
    others = [each for each in operations if each.action.changes or each.action.codec is not JSON]
    assert not [each.id for each in others if has_page(each.action, each.signature)]
    assert not has_page(Action("x.y", False), Signature((), None)), "it has no route"


def test_it_prints_the_public_address_with_the_whole_id(project: Project, database: TestDatabase) -> None:
    sql = "INSERT INTO kernel.jobs (id, queue, task, rank, max_attempts, timeout_s) VALUES (%s, 'q', 't', 0, 1, 1)"
    database.run(sql, JOB)
    public = {"HTTP_SERVER_PUBLIC_URL": "https://api.example.com"}
    done = project.app("jobs", "show", str(JOB)[-8:], "--web", env=public)
    assert (done.stdout, done.stderr) == (f"https://api.example.com/console/jobs/{JOB}\n", "")
    refused = project.app("jobs", "list", "--web", env={"HTTP_SERVER_PUBLIC_URL": "api.example.com"})
    assert refused.returncode == 78
    assert "http_server.public_url" in refused.stderr
