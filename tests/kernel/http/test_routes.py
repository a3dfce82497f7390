"""Middlewares, problem details and the generic endpoint, over ASGI in process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from annotated_types import Len

from app.kernel.actions import Action, Signature
from app.kernel.actions.operation import ActionOperation
from app.kernel.callers import BearerToken, Caller, Origin
from app.kernel.config import HttpServerSettings, load
from app.kernel.errors import Conflict, Denied, Invalid, NotFound, RateLimited, Refusal, Unauthenticated, Unavailable
from app.kernel.http.authenticators import Bearer
from app.kernel.http.codecs import Form
from app.kernel.http.middleware import stack
from app.kernel.http.openapi import openapi
from app.kernel.http.routes import router
from app.kernel.queue import InvalidDeclaration
from app.processes import sections
from tests.support.project import ROOT

SETTINGS = load(ROOT, sections(), {"APP_ENV": "test"})[HttpServerSettings]


@dataclass(frozen=True)
class Greeting:
    name: Annotated[str, Len(2, 10)]
    times: int = 1


@dataclass(frozen=True)
class Rename:
    id: UUID
    name: Annotated[str, Len(2, 10)]


@dataclass(frozen=True)
class Answer:
    text: str


class Greet:
    async def __call__(self, greeting: Greeting) -> Answer:
        return Answer(greeting.name * greeting.times)


class RenameIt:
    async def __call__(self, caller: Caller, rename: Rename) -> Answer:
        return Answer(f"{rename.id} {rename.name}")


@dataclass(frozen=True)
class Wanted:
    id: UUID
    to: datetime | None = None
    all: bool = False
    from_: datetime | None = None


class Find:
    async def __call__(self, wanted: Wanted) -> Answer:
        return Answer(f"{wanted.id} {wanted.to} {wanted.all} {wanted.from_}")


class Whisper:
    async def __call__(self, token: BearerToken) -> None:
        assert token == "gone"


@dataclass(frozen=True)
class Item:
    sku: Annotated[str, Len(1, 8)]
    count: int = 1


class Count:
    async def __call__(self, caller: Caller, items: Annotated[list[Item], Len(1, 3)]) -> Answer:
        return Answer(str(sum(item.count for item in items)))


class CountTuple:
    async def __call__(self, items: tuple[Item, ...]) -> Answer:
        return Answer(str(len(items)))


class CountText:
    async def __call__(self, text: str) -> None: ...


class CountBoth:
    async def __call__(self, items: list[Item], greeting: Greeting) -> None: ...


class Refuse:
    refusal: Refusal = NotFound()

    async def __call__(self) -> Answer:
        raise self.refusal


class Fail:
    error: BaseException = RuntimeError("a secret detail")

    async def __call__(self) -> Answer:
        raise self.error


class Sleep:
    cancelled = False

    async def __call__(self) -> Answer:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            Sleep.cancelled = True
            raise
        return Answer("")


async def authenticate(token: str, origin: Origin) -> Caller:
    if token != "good":
        raise Unauthenticated("no")
    return Caller(permissions=frozenset({"x:y:read"}))


def route(method: str, path: str, body: Any, **declared: Any) -> ActionOperation:
    """A route of an action that does just this; its id is its path."""
    action = Action(path, method != "GET", method, path, **declared)
    run = body.__call__
    return ActionOperation(action, run, Signature.of(run), db=None, audit=None)


AUTHENTICATORS = {Bearer: Bearer(authenticate)}


DENIED: list[str] = []


async def note_denied(caller: Caller, operation_id: str) -> None:
    DENIED.append(operation_id)


@asynccontextmanager
async def client(**changes: object) -> AsyncIterator[httpx.AsyncClient]:
    settings = replace(SETTINGS, **changes)
    routes = [
        route("POST", "/greet", Greet(), public=True),
        route("GET", "/greet", Greet(), public=True),
        route("PATCH", "/things/{id}", RenameIt(), permission="x:y:read"),
        route("DELETE", "/things/{id}", RenameIt(), permission="x:y:write"),
        route("POST", "/whisper", Whisper(), public=True),
        route("GET", "/things/{id}", Find()),
        route("POST", "/count", Count(), public=True),
        route("POST", "/count-all", CountTuple(), public=True),
        route("GET", "/refuse", Refuse(), public=True),
        route("GET", "/fail", Fail(), public=True),
        route("GET", "/sleep", Sleep(), public=True),
        route("GET", "/nap", Sleep(), public=True, timeout_s=0.05),
    ]
    app = stack(router(routes, AUTHENTICATORS, note_denied, settings), settings)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
        yield opened


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nowhere", {}, 404, "NOT_FOUND"),
        ("GET", "/greet/", {}, 404, "NOT_FOUND"),
        ("PUT", "/greet", {}, 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/greet", {"content": b"name=x"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/greet", {"json": None}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/greet", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, "MALFORMED"),
        ("POST", "/greet", {"json": {"name": "x" * 3000}}, 413, "BODY_TOO_LARGE"),
        ("POST", "/greet", {"json": []}, 422, "INVALID_INPUT"),
        ("POST", "/greet", {"json": {"name": "yo", "times": "2"}}, 422, "INVALID_INPUT"),
        ("POST", "/greet", {"json": {"name": "yo", "more": 2}}, 422, "INVALID_INPUT"),
        ("GET", "/greet?name=yo&times=x", {}, 422, "INVALID_INPUT"),
        ("GET", "/greet?name=yo&times=+2", {}, 422, "INVALID_INPUT"),
        ("GET", "/greet?name=yo&times=%2B2", {}, 422, "INVALID_INPUT"),
        ("GET", "/greet?name=yo&times=2_0", {}, 422, "INVALID_INPUT"),
        ("GET", "/greet?name=yo&times=%D9%A5", {}, 422, "INVALID_INPUT"),
        ("GET", "/greet?name=yo&times=", {}, 422, "INVALID_INPUT"),
        ("GET", "/greet?name=yo&times", {}, 422, "INVALID_INPUT"),
        ("GET", "/greet?name=yo&name=yo", {}, 400, "MALFORMED"),
        ("GET", "/greet?name=yo&%6eame=yo", {}, 400, "MALFORMED"),
        ("GET", "/greet?name=%ff%ff", {}, 400, "MALFORMED"),
        ("GET", "/greet?name=ab%4", {}, 400, "MALFORMED"),
        ("GET", "/greet?name=50%", {}, 400, "MALFORMED"),
        ("GET", "/greet?%zz=1&name=ab", {}, 400, "MALFORMED"),
        ("GET", "/greet?name=yo%00", {}, 400, "MALFORMED"),
        ("POST", "/greet", {"json": {"name": "yo", "times": 2.5}}, 422, "INVALID_INPUT"),
        ("POST", "/greet", {"json": {"name": "yo", "times": True}}, 422, "INVALID_INPUT"),
        ("POST", "/count", {"json": []}, 422, "INVALID_INPUT"),
        ("POST", "/count", {"json": {}}, 422, "INVALID_INPUT"),
        ("POST", "/count", {"json": [{"sku": "x"}] * 4}, 422, "INVALID_INPUT"),
        ("POST", "/count", {"json": [{"sku": "x", "more": 1}]}, 422, "INVALID_INPUT"),
        ("PATCH", "/things/1", {"json": {"name": "yo"}}, 401, "INVALID_TOKEN"),
        ("POST", "/whisper", {}, 401, "INVALID_TOKEN"),
    ],
)
async def test_what_cannot_be_handled_is_refused_as_a_problem(
    method: str, path: str, options: dict, status: int, code: str
) -> None:
    async with client(max_body_bytes=1024) as http:
        answer = await http.request(method, path, **options)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert {"type", "title", "detail", "request_id", "trace_id"} <= problem.keys()
    assert problem["request_id"] == answer.headers["x-request-id"]


async def test_every_invalid_field_is_named_and_no_value_is_repeated() -> None:
    async with client() as http:
        answer = await http.post("/greet", json={"name": "secretsecret", "times": "secret", "more": 1})
    assert [error["field"] for error in answer.json()["errors"]] == ["name", "times", "more"]
    assert "secret" not in answer.text


async def test_inputs_come_from_body_query_and_path() -> None:
    thing = "01a20304-51b9-712d-b52c-fd40df0b43e3"
    async with client() as http:
        assert (await http.post("/greet", json={"name": "yo", "times": 2})).json() == {"text": "yoyo"}
        assert (await http.get("/greet?name=yo&times=2")).json() == {"text": "yoyo"}
        http.headers["authorization"] = "Bearer good"
        answer = await http.patch(f"/things/{thing}", json={"name": "yo"})
        assert answer.json() == {"text": f"{thing} yo"}
        assert (await http.patch(f"/things/{thing}", json={"name": "yo", "id": thing})).status_code == 422
        assert (await http.patch("/things/7", json={"name": "yo"})).status_code == 422
        DENIED.clear()
        denied = await http.delete(f"/things/{thing}")
        assert (denied.status_code, denied.json()["code"]) == (403, "PERMISSION_DENIED")
        assert DENIED == ["/things/{id}"]
        assert (await http.post("/whisper", headers={"authorization": "bearer  gone"})).status_code == 204


async def test_a_query_is_read_as_documented_and_cannot_say_what_the_path_says() -> None:
    thing = "01a20304-51b9-712d-b52c-fd40df0b43e3"
    async with client() as http:
        http.headers["authorization"] = "Bearer good"
        answer = await http.get(f"/things/{thing}?to=2026-11-22T10:00:00Z&all=true&from=2026-11-22T10:00:00%2B01:00")
        moments = "2026-11-22 10:00:00+00:00 True 2026-11-22 10:00:00+01:00"
        assert answer.json() == {"text": f"{thing} {moments}"}
        for query in (
            "to=0.5",
            "to=1763805600",
            "to=2026-11-22T10:00:00",
            "all=yes",
            "all=1",
            f"id={thing}",
            "from_=x",
        ):
            assert (await http.get(f"/things/{thing}?{query}")).status_code == 422, query
        for other in (thing.replace("-", ""), f"urn:uuid:{thing}", f"%7B{thing}%7D"):
            assert (await http.get(f"/things/{other}")).status_code == 422, other


async def test_a_body_may_be_an_array() -> None:
    async with client() as http:
        answer = await http.post("/count", json=[{"sku": "a", "count": 2}, {"sku": "b", "count": 3.0}])
        assert answer.json() == {"text": "5"}
        assert (await http.post("/count-all", json=[{"sku": "a"}, {"sku": "b"}])).json() == {"text": "2"}
        assert (await http.post("/count-all", json=[])).json() == {"text": "0"}
        assert (await http.post("/count-all", json={})).status_code == 422
        wrong = await http.post("/count", json=[{"sku": "a"}, {"sku": ""}])
    assert [error["field"] for error in wrong.json()["errors"]] == ["1.sku"]
    operation = openapi([route("POST", "/count", Count(), public=True)], "test")["paths"]["/count"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert (schema["type"], schema["minItems"], schema["maxItems"]) == ("array", 1, 3)
    assert schema["items"] == {"$ref": "#/components/schemas/Item"}
    assert {"408", "413", "415", "422"} <= set(operation["responses"])


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (partial(route, "GET", "/count", Count()), "an array can only be the whole input"),
        (partial(route, "POST", "/count", Count(), codec=Form()), "an array can only be the whole input"),
        (partial(route, "POST", "/count/{id}", Count()), "an array can only be the whole input"),
        (partial(route, "POST", "/count", CountText()), "text must be a dataclass or a list"),
        (partial(route, "POST", "/count", CountBoth()), "there can be only one input"),
    ],
)
def test_an_input_that_cannot_be_served_is_refused_when_it_is_declared(
    route: Callable[[], ActionOperation], message: str
) -> None:
    with pytest.raises((TypeError, InvalidDeclaration), match=message):
        router([route()], AUTHENTICATORS, note_denied, SETTINGS)


def test_two_actions_with_one_route_are_refused() -> None:
    with pytest.raises(InvalidDeclaration, match="POST /count is declared twice, the second time by"):
        router(
            [route("POST", "/count", Count()), route("POST", "/count", Count())], AUTHENTICATORS, note_denied, SETTINGS
        )


@pytest.mark.parametrize(
    ("refusal", "status", "header"),
    [
        (Invalid(), 422, None),
        (Unauthenticated(), 401, ("www-authenticate", "Bearer")),
        (Denied(), 403, None),
        (NotFound(), 404, None),
        (Conflict(), 409, None),
        (Unavailable(retry_after_s=7), 503, ("retry-after", "7")),
        (RateLimited(retry_after_s=9), 429, ("retry-after", "9")),
    ],
)
async def test_each_kind_of_refusal_has_its_status(
    monkeypatch: pytest.MonkeyPatch, refusal: Refusal, status: int, header: tuple[str, str] | None
) -> None:
    monkeypatch.setattr(Refuse, "refusal", refusal)
    async with client() as http:
        answer = await http.get("/refuse")
    assert answer.status_code == status
    assert answer.json()["title"] == type(refusal).title
    assert header is None or answer.headers[header[0]] == header[1]


async def test_an_unexpected_error_is_a_500_without_details_unless_debugging() -> None:
    async with client() as http:
        answer = await http.get("/fail")
        assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL_ERROR")
        assert "secret" not in answer.text
        assert answer.json()["request_id"]
    async with client(debug=True) as http:
        assert "a secret detail" in (await http.get("/fail")).json()["detail"]


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseExceptionGroup("", [SystemExit()]),
    ],
)
async def test_whatever_an_operation_raises_is_a_500(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    monkeypatch.setattr(Fail, "error", error)
    async with client() as http:
        answer = await http.get("/fail")
    assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL_ERROR")


async def test_a_request_over_the_handle_timeout_is_cancelled_and_answered_504() -> None:
    async with client(handle_timeout=0.05) as http:
        answer = await http.get("/sleep")
    assert (answer.status_code, answer.json()["code"]) == (504, "TIMEOUT")
    assert Sleep.cancelled


async def test_a_route_can_have_a_timeout_of_its_own() -> None:
    async with client(handle_timeout=20) as http:
        answer = await http.get("/nap")
    assert (answer.status_code, answer.json()["detail"]) == (504, "no answer within 0.05 s")


@pytest.mark.parametrize("given", ["abc-1", "A.b_C-9" * 9])
async def test_a_well_formed_request_id_is_kept(given: str) -> None:
    async with client() as http:
        assert (await http.get("/greet?name=yo", headers={"x-request-id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", "ü"])
async def test_another_request_id_is_made_when_it_is_not_well_formed(given: str) -> None:
    async with client() as http:
        answer = await http.get("/greet?name=yo", headers={"x-request-id": given.encode()})
    assert UUID(answer.headers["x-request-id"]).version == 7


async def test_the_callers_trace_is_continued_and_a_broken_one_is_not() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with client() as http:
        kept = await http.get("/nowhere", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
        assert kept.json()["trace_id"] == trace
        for broken in (f"00-{trace}-0000000000000000-01", f"ff-{trace}-b7ad6b7169203331-01", "nonsense"):
            made = await http.get("/nowhere", headers={"traceparent": broken})
            assert made.json()["trace_id"] not in (trace, "0" * 32)


async def test_the_openapi_document_says_what_is_served() -> None:
    routes = [
        route("POST", "/greet", Greet(), public=True),
        route("GET", "/greet", Greet(), public=True),
        route("PATCH", "/things/{id}", RenameIt(), permission="x:y:read"),
        route("POST", "/whisper", Whisper(), public=True),
    ]
    document = openapi(routes, "test")
    post, get = document["paths"]["/greet"]["post"], document["paths"]["/greet"]["get"]
    body = post["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["name"]
    assert body["properties"]["name"] | {"title": ""} == {
        "type": "string",
        "minLength": 2,
        "maxLength": 10,
        "pattern": "^[^\\u0000]*$",
        "title": "",
    }
    assert [(p["name"], p["in"], p["required"]) for p in get["parameters"]] == [
        ("name", "query", True),
        ("times", "query", False),
    ]
    assert post["security"] == []
    patch = document["paths"]["/things/{id}"]["patch"]
    assert [(p["name"], p["in"]) for p in patch["parameters"]] == [("id", "path")]
    assert list(patch["requestBody"]["content"]["application/json"]["schema"]["properties"]) == ["name"]
    assert patch["security"] == [{"bearer": []}]
    assert "x:y:read" in patch["description"]
    whisper = document["paths"]["/whisper"]["post"]
    assert whisper["security"] == [{"bearer": []}]
    assert set(whisper["responses"]) == {"204", "400", "401", "503", "504", "default"}
