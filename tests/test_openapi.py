"""The OpenAPI document of a running process, used by a program: schemathesis asks whatever the document allows.

It is imported here alone: it costs every other test half a second, which is also why its plugin is off.
"""

import base64
import os
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings

from app.kernel.http.reference.page import curl
from app.modules.auth.domain.second_factor import totp
from tests.conftest import SUPERUSER, log_in
from tests.support.leaks import WATCH
from tests.support.project import Project

EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "6"))
ACTORS, ROLES = "/auth/v1/actors", "/auth/v1/roles"
USERNAME, PASSWORD = SUPERUSER


@pytest.fixture
def root(project: Project) -> httpx.Client:
    return log_in(project, project.start("run-all-in-one"))


@pytest.fixture
def schema(root: httpx.Client) -> Any:
    import schemathesis

    document = root.get("/openapi.json").json()
    for methods in document["paths"].values():
        for operation in methods.values():
            del operation["responses"]["default"]  # it is for what nobody expects; here every status is to be expected
    return schemathesis.openapi.from_dict(document)


def test_the_document_is_valid_and_complete(root: httpx.Client) -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator

    document = root.get("/openapi.json").json()
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    assert document["servers"] == [{"url": "/", "description": "The server of this document"}]
    schemes = document["components"]["securitySchemes"]
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    for name, operation in operations.items():
        assert all(set(choice) <= set(schemes) for choice in operation["security"]), name
    public = {name for name, operation in operations.items() if operation["security"] == []}
    assert public - {"POST /oauth/revoke"} == {
        "POST /auth/v1/login",
        "POST /auth/v1/refresh",
        "GET /.well-known/oauth-authorization-server",
        "GET /.well-known/jwks.json",
    }
    assert operations["POST /oauth/token"]["security"] == [{"basic": []}, {}]
    assert operations["GET /auth/v1/me"]["security"] == [{"bearer": []}]


def test_every_default_and_example_fits_its_own_schema(root: httpx.Client) -> None:
    import jsonschema_rs

    document = root.get("/openapi.json").json()
    found = list(samples(document))
    assert found
    for schema, sample in found:
        jsonschema_rs.validator_for({**schema, "components": document["components"]}).validate(sample)


def samples(part: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Return the schemas inside of a document that have a default or examples, with each of these."""
    if isinstance(part, list):
        for item in part:
            yield from samples(item)
    elif isinstance(part, dict):
        if "default" in part and not isinstance(part["default"], dict):
            yield part, part["default"]
        for example in part.get("examples", ()) if isinstance(part.get("examples"), list) else ():
            yield part, example
        if "example" in part:
            yield part["schema"], part["example"]
        for value in part.values():
            yield from samples(value)


def test_every_command_of_the_reference_is_understood(root: httpx.Client, tmp_path: Path) -> None:
    """Run each as it stands on the page: whatever it names does not exist, but no part of it is refused as input."""
    token, body = root.headers["authorization"].removeprefix("Bearer "), tmp_path / "body"
    for path, methods in root.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            if path in {"/auth/v1/logout", "/auth/v1/me/password"}:  # it would end the session, or lock it out
                continue
            command = f"{curl(method.upper(), path, operation)} -s -o {body} -w '%{{http_code}}'"
            env = {**os.environ, "URL": str(root.base_url), "TOKEN": token, "CLIENT_ID": "a", "CLIENT_SECRET": "b"}
            done = subprocess.run(
                ["bash", "-c", command], env=env, capture_output=True, text=True, check=True, timeout=20
            )
            status, answer = int(done.stdout), body.read_text() if body.exists() else ""
            assert str(status) in operation["responses"], (command, status, answer)
            assert status not in {405, 413, 415, 431}, (command, answer)
            assert not any(code in answer for code in ('"MALFORMED"', '"INVALID_INPUT"', "invalid_request")), (
                command,
                answer,
            )


class Names:
    """Path parameters that name something, made for one operation, so that not every answer is 404."""

    def __init__(self, root: httpx.Client) -> None:
        self._root = root
        self._numbers = count()
        sign_in = {"username": USERNAME, "password": PASSWORD}
        # guesses at the password lock the superuser out, so they sign in before that; the run must not end its own
        self.session, self.to_be_ended = (root.post("/auth/v1/login", json=sign_in).json()["session"] for _ in range(2))

    def of(self, path: str) -> dict[str, str] | None:
        if "{" not in path:
            return None
        number = next(self._numbers)
        if path.startswith(ROLES):
            return {"id": self._root.post(ROLES, json={"name": f"role-{number}"}).json()["id"]}
        if path.startswith(ACTORS):
            wanted = {"type": "service_acc", "username": f"robot-{number}"}
            actor = self._root.post(ACTORS, json=wanted).json()["id"]
            key = self._root.post(f"{ACTORS}/{actor}/keys", json={"name": "k", "permissions": []}).json()["id"]
            return {"id": actor, "key_id": key, "session_id": self.to_be_ended["id"]}
        return {"id": self.to_be_ended["id"]}


def expected() -> list[Any]:
    """Return what every answer is checked for."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    documented = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
    return [not_a_server_error, accepted_as_documented, checks.negative_data_rejection, *documented]


def accepted_as_documented(ctx: Any, response: Any, case: Any) -> None:
    """Fail when what the schema allows is refused before the operation has seen it."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code not in (400, 422):
        return
    problem = response.json()
    refused = problem.get("code") == "MALFORMED" or problem.get("detail") == "the input is invalid; see errors"
    assert not refused, problem


def ask(operation: Any, url: str, token: str, names: dict[str, str] | None = None) -> None:
    """Ask for an operation in ways that its schema allows and in ways that it does not; check every answer."""
    from schemathesis import GenerationMode

    cases = operation.as_strategy() | operation.as_strategy(GenerationMode.NEGATIVE)
    if names is not None:
        cases |= operation.as_strategy(path_parameters=names)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def check(case: Any) -> None:
        answer = case.call(base_url=url, headers={"authorization": token})
        sent = dict(parse_qsl(urlsplit(str(answer.request.url)).query, keep_blank_values=True))
        assume(sent.keys() >= set(case.query or ()))  # a parameter that is an empty list is not sent at all
        case.validate_response(answer, checks=expected())
        if answer.status_code < 400 and "json" in answer.headers.get("content-type", ""):
            WATCH.fields(answer.json())

    check()


def test_every_operation_answers_as_the_document_says(root: httpx.Client, schema: Any, subtests: Any) -> None:
    names = Names(root)
    for found in schema.get_all_operations():
        operation = found.ok()
        with subtests.test(operation.label):
            signs_out = operation.path == "/auth/v1/logout"
            token = f"Bearer {names.session['access_token']}" if signs_out else root.headers["authorization"]
            ask(operation, str(root.base_url), token, names.of(operation.path))
    assert root.get("/auth/v1/me").status_code == 200, "the run ended its own session, and saw 401 from then on"


def test_what_needs_a_password_or_a_token_answers_as_the_document_says(root: httpx.Client, schema: Any) -> None:
    def answered(method: str, path: str, status: int = 200, **body: str) -> Any:
        media_type = "application/x-www-form-urlencoded" if path.startswith("/oauth") else "application/json"
        case = schema[path][method].Case(body=body, media_type=media_type)
        answer = case.call(base_url=str(root.base_url), headers={"authorization": root.headers["authorization"]})
        case.validate_response(answer, checks=expected())
        assert answer.status_code == status, answer.text
        WATCH.fields(body)
        content = answer.json() if answer.content else {}
        WATCH.fields(content)
        return content

    def otp(pending: Any) -> str:
        return totp(base64.b32decode(pending["secret"]), int(time.time()) // 30)

    session = answered("POST", "/auth/v1/login", username=USERNAME, password=PASSWORD)["session"]
    session = answered("POST", "/auth/v1/refresh", refresh_token=session["refresh_token"])
    token = answered("POST", "/oauth/token", grant_type="refresh_token", refresh_token=session["refresh_token"])
    answered("POST", "/oauth/revoke", token=token["access_token"])
    robot = root.post(ACTORS, json={"type": "service_acc", "username": "robot"}).json()["id"]
    key = root.post(f"{ACTORS}/{robot}/keys", json={"name": "k", "permissions": []}).json()["key"]
    client = {"client_id": "robot", "client_secret": key}
    token = answered("POST", "/oauth/token", grant_type="client_credentials", **client)
    assert answered("POST", "/oauth/introspect", token=token["access_token"], **client)["active"] is True
    assert answered("POST", "/oauth/introspect", token=session["access_token"], **client) == {"active": False}
    pending = answered("POST", "/auth/v1/me/totp", current_password=PASSWORD)
    codes = answered("POST", "/auth/v1/me/totp/confirm", otp=otp(pending))["recovery_codes"]
    answered("DELETE", "/auth/v1/me/totp", 204, current_password=PASSWORD, otp=codes[0])
    answered("PUT", "/auth/v1/me/password", 204, current_password=PASSWORD, new_password="quite another horse")


@pytest.mark.parametrize("wrong", ["a status is missing", "a field is of another type"])
def test_a_document_that_is_wrong_is_noticed(root: httpx.Client, schema: Any, wrong: str) -> None:
    from schemathesis.core.failures import FailureGroup

    if wrong == "a status is missing":
        del schema.raw_schema["paths"]["/auth/v1/roles/{id}"]["get"]["responses"]["404"]
        operation = schema["/auth/v1/roles/{id}"]["GET"]
    else:
        schema.raw_schema["components"]["schemas"]["Me"]["properties"]["permissions"] = {"type": "integer"}
        operation = schema["/auth/v1/me"]["GET"]
    with pytest.raises(FailureGroup):
        ask(operation, str(root.base_url), root.headers["authorization"])
