"""What an action declares of how it is served: authenticator, codec, header fields, caching; over ASGI in process."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from uuid import UUID

import httpx
import pytest
from loguru import logger

from app.kernel.actions import BasicAuth, Caller, change, read
from app.kernel.actions.compose import operations, value
from app.kernel.actions.operation import ActionOperation
from app.kernel.callers import Origin
from app.kernel.config import HttpServerSettings, load
from app.kernel.errors import Invalid, NotFound, Refusal, Unauthenticated
from app.kernel.http.asgi import Scope, header
from app.kernel.http.codecs import Form, Response
from app.kernel.http.middleware import stack
from app.kernel.http.openapi import openapi
from app.kernel.http.problems import HttpProblem
from app.kernel.http.routes import api
from app.kernel.process import Process
from app.kernel.providers import PROVIDERS
from app.processes import sections
from tests.conftest import TestDatabase
from tests.support.project import ROOT

ACTOR = UUID("01a20304-51b9-712d-b52c-fd40df0b43e3")


class Sessions:
    """Who has signed in."""

    actors: ClassVar[Mapping[bytes, UUID]] = {b"session=good": ACTOR}


@dataclass(frozen=True, slots=True)
class SessionCookie:
    """A session in a cookie."""

    name: ClassVar[str] = "session"
    scheme: ClassVar[Mapping[str, Any]] = {"type": "apiKey", "in": "cookie", "name": "session"}

    sessions: Sessions

    async def __call__(self, scope: Scope, origin: Origin) -> Caller:
        found = self.sessions.actors.get(header(scope, b"cookie") or b"")
        if found is None:
            raise Unauthenticated
        return Caller(found, origin=origin)


class Pages(Form):
    """Forms of pages: whoever is not signed in is sent to where one signs in."""

    def refuse(self, refusal: Refusal | HttpProblem) -> Response | None:
        if isinstance(refusal, Unauthenticated):
            return Response(303, b"text/plain", b"", [(b"location", b"/sign-in")])
        return None


@dataclass(frozen=True, slots=True)
class Rename:
    id: UUID
    name: str


@dataclass(frozen=True, slots=True)
class Renamed:
    by: UUID | None
    name: str


class Gone(NotFound):
    code = "GONE"
    title = "The thing is gone"


class Moved(NotFound):
    code = "MOVED"
    title = "The thing has moved"


@dataclass(frozen=True, slots=True)
class Ref:
    id: str


def _tag(result: Renamed) -> dict[str, str]:
    return {"etag": f'"{result.name}"'}


@dataclass(frozen=True, slots=True)
class Console:
    """A console."""

    @change("console.rename", POST="/console/things/{id}", authenticator=SessionCookie, codec=Pages(), headers=_tag)
    async def rename(self, caller: Caller, given: Rename) -> Renamed:
        """Rename a thing."""
        if given.name == "bad":
            raise Invalid("no")
        return Renamed(caller.actor_id, given.name)

    @read("console.find", GET="/console/things/{id}", public=True, raises=(Gone,))
    async def find(self, ref: Ref) -> str:
        """Find a thing."""
        raise Gone if ref.id == "gone" else Moved

    @read("console.style", GET="/console/style", public=True, cache_s=60)
    async def style(self, basic: BasicAuth) -> str:
        """Return the style."""
        return basic.username


@pytest.fixture
async def routes(database: TestDatabase) -> AsyncIterator[tuple[Process, list[ActionOperation]]]:
    settings = load(ROOT, sections(), {"APP_ENV": "test", **database.env})
    providers = {**PROVIDERS, Sessions: lambda _: value(Sessions())}
    async with Process("test", settings, ROOT, providers).opened() as p:
        yield p, await operations(p, [Console])


@asynccontextmanager
async def client(routes: tuple[Process, list[ActionOperation]]) -> AsyncIterator[httpx.AsyncClient]:
    p, declared = routes
    app = stack(await api(p, declared), replace(p.settings[HttpServerSettings], handle_timeout=5))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as opened:
        yield opened


async def test_an_authenticator_finds_out_who_asks(routes: tuple[Process, list[ActionOperation]]) -> None:
    async with client(routes) as http:
        answer = await http.post(f"/console/things/{ACTOR}", data={"name": "n"}, headers={"cookie": "session=good"})
    assert answer.json() == {"by": str(ACTOR), "name": "n"}
    assert answer.headers["etag"] == '"n"'


async def test_a_codec_reads_the_body_and_answers_refusals_or_leaves_them_to_problem_details(
    routes: tuple[Process, list[ActionOperation]],
) -> None:
    async with client(routes) as http:
        answer = await http.post(f"/console/things/{ACTOR}", data={"name": "n"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
        http.headers["cookie"] = "session=good"
        refused = [
            await http.post(f"/console/things/{ACTOR}", data={"name": "bad"}),
            await http.post(f"/console/things/{ACTOR}", data={"name": "n", "id": str(ACTOR)}),
            await http.post(f"/console/things/{ACTOR}", json={"name": "n"}),
        ]
    assert [answer.status_code for answer in refused] == [422, 422, 415]
    assert {answer.headers["content-type"] for answer in refused} == {"application/problem+json"}


async def test_a_result_may_be_kept_as_long_as_declared(routes: tuple[Process, list[ActionOperation]]) -> None:
    async with client(routes) as http:
        answer = await http.get("/console/style", auth=("n", ""))
        assert (answer.json(), answer.headers["cache-control"]) == ("n", "public, max-age=60")


async def test_openapi_names_the_authenticators_scheme(routes: tuple[Process, list[ActionOperation]]) -> None:
    document = openapi(routes[1], "test")
    assert document["components"]["securitySchemes"]["session"] == SessionCookie.scheme
    described = document["paths"]["/console/things/{id}"]["post"]
    assert described["security"] == [{"session": []}]
    assert list(described["requestBody"]["content"]) == ["application/x-www-form-urlencoded"]


async def test_a_refusal_that_is_not_declared_is_logged(routes: tuple[Process, list[ActionOperation]]) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="WARNING")
    try:
        async with client(routes) as http:
            answer = await http.get("/console/things/gone")
            assert (answer.status_code, answer.json()["code"], answer.json()["title"]) == (404, "GONE", Gone.title)
            assert [line for line in lines if "declare" in line] == []
            assert (await http.get("/console/things/moved")).json()["code"] == "MOVED"
            assert [line for line in lines if "declare" in line] == [
                "console.find raised MOVED, which it does not declare\n"
            ]
    finally:
        logger.remove(sink)


def test_a_refusal_has_a_code_and_a_title_or_neither() -> None:
    with pytest.raises(TypeError, match="declare code and title"):
        type("Half", (NotFound,), {"code": "HALF"})
