"""Which ways lead in, and that everything else asks who is there."""

import base64

import httpx
import pytest

from tests.conftest import SUPERUSER, log_in
from tests.support.project import ROOT, Project

USERNAME, PASSWORD = SUPERUSER
ME = "/auth/v1/me"
Operation = tuple[str, str]

# the routes that serve those who are not signed in, and what they take
_TOKEN_IN_QUESTION = {"token", "client_id", "client_secret"}
OPEN = {
    ("POST", "/auth/v1/login"): {"username", "password", "otp"},
    ("POST", "/auth/v1/refresh"): {"refresh_token"},
    ("POST", "/oauth/token"): {"grant_type", "refresh_token", "scope", "client_id", "client_secret"},
    ("POST", "/oauth/introspect"): _TOKEN_IN_QUESTION,
    ("POST", "/oauth/revoke"): _TOKEN_IN_QUESTION,
    ("GET", "/.well-known/oauth-authorization-server"): set(),
    ("GET", "/.well-known/jwks.json"): set(),
}
# what everybody who is signed in may do, for themselves
OWN = {
    ("POST", "/auth/v1/logout"),
    ("GET", ME),
    ("PUT", f"{ME}/password"),
    ("GET", f"{ME}/sessions"),
    ("DELETE", f"{ME}/sessions/{{id}}"),
    ("POST", f"{ME}/totp"),
    ("POST", f"{ME}/totp/confirm"),
    ("DELETE", f"{ME}/totp"),
    ("GET", "/auth/v1/verify"),
}


@pytest.fixture
def root(project: Project) -> httpx.Client:
    """A client signed in as the superuser, to a process that serves every API."""
    return log_in(project, project.start("run-all-in-one"))


def served(client: httpx.Client) -> dict[Operation, dict]:
    """Return everything that is served, with its description."""
    paths = client.get("/openapi.json").json()["paths"]
    return {(method.upper(), path): what for path, methods in paths.items() for method, what in methods.items()}


def asked(client: httpx.Client, operation: Operation, **more: object) -> httpx.Response:
    method, path = operation
    for name in ("id", "key_id", "session_id"):
        path = path.replace(f"{{{name}}}", "0190b3a0-0000-7000-8000-000000000001")
    return client.request(method, path, **more)  # type: ignore[arg-type]


def fields(described: dict) -> set[str]:
    content = described.get("requestBody", {"content": {}})["content"]
    return {name for kind in content.values() for name in kind["schema"]["properties"]}


def test_the_ways_in_are_those_that_are_documented(project: Project, root: httpx.Client) -> None:
    stranger, operations = project.client(str(root.base_url)), served(root)
    answers = {operation: asked(stranger, operation) for operation in operations}
    closed = {operation for operation, answer in answers.items() if answer.status_code == 401}
    assert {operation: fields(operations[operation]) for operation in operations.keys() - closed} == OPEN
    assert all(answers[operation].headers["www-authenticate"] == "Bearer" for operation in closed)
    documented = (ROOT / "docs" / "auth.md").read_text()
    assert [path for _, path in OPEN if path not in documented] == []


def test_whoever_holds_no_permission_reaches_only_what_is_their_own(project: Project, root: httpx.Client) -> None:
    made = root.post("/auth/v1/actors", json={"type": "user", "username": "ann", "password": "quite a good one"})
    assert made.status_code == 201, made.text
    ann = project.client(str(root.base_url))
    session = ann.post("/auth/v1/login", json={"username": "ann", "password": "quite a good one"}).json()["session"]
    ann.headers["Authorization"] = f"Bearer {session['access_token']}"
    operations = served(root).keys()
    assert operations >= OWN
    reached = {operation for operation in operations - OPEN.keys() - OWN if asked(ann, operation).status_code != 403}
    assert reached == set()
    assert len(operations - OPEN.keys() - OWN) > 20


def test_an_access_token_is_taken_from_the_authorization_header_only(project: Project, root: httpx.Client) -> None:
    header = root.headers["Authorization"]
    token = header.removeprefix("Bearer ")
    stranger = project.client(str(root.base_url))
    form = {"access_token": token}
    basic = base64.b64encode(f":{token}".encode()).decode()
    attempts: list[tuple[Operation, dict]] = [
        (("GET", ME), {"params": form}),
        (("GET", ME), {"params": {"authorization": header}}),
        (("GET", ME), {"headers": {"cookie": f"access_token={token}; token={token}"}}),
        (("GET", ME), {"headers": {"cookie": f"Authorization={header}"}}),
        (("GET", ME), {"data": form}),
        (("GET", ME), {"headers": {"x-access-token": token, "x-authorization": header}}),
        (("GET", ME), {"headers": {"proxy-authorization": header}}),
        (("GET", ME), {"headers": {"authorization": token}}),
        (("GET", ME), {"headers": {"authorization": f"Token {token}"}}),
        (("GET", ME), {"headers": {"authorization": f"Basic {basic}"}}),
        (("POST", "/auth/v1/logout"), {"data": form}),
        (("POST", "/auth/v1/logout"), {"json": form}),
        (("PUT", f"{ME}/password"), {"data": {**form, "current_password": PASSWORD, "new_password": "never to be"}}),
    ]
    for operation, sent in attempts:
        answer = asked(stranger, operation, **sent)
        assert (answer.status_code, answer.json()["code"]) == (401, "INVALID_TOKEN"), sent
    assert asked(stranger, ("GET", ME), headers={"authorization": header}).status_code == 200


def test_a_secret_of_one_kind_is_refused_where_another_is_asked_for(project: Project, root: httpx.Client) -> None:
    session = root.post("/auth/v1/login", json={"username": USERNAME, "password": PASSWORD}).json()["session"]
    robot = root.post("/auth/v1/actors", json={"type": "service_acc", "username": "robot"}).json()["id"]
    key = root.post(f"/auth/v1/actors/{robot}/keys", json={"name": "k", "permissions": []}).json()["key"]
    access, refresh = session["access_token"], session["refresh_token"]
    stranger = project.client(str(root.base_url))

    def code(path: str, **sent: object) -> str:
        answer = stranger.post(path, **sent)  # type: ignore[arg-type]
        assert 400 <= answer.status_code < 500, answer.text
        return answer.json().get("code") or answer.json()["error"]

    as_bearer = stranger.get(ME, headers={"authorization": f"Bearer {refresh}"})
    assert (as_bearer.status_code, as_bearer.json()["code"]) == (401, "INVALID_TOKEN")
    for wrong in (access, key):
        assert code("/auth/v1/refresh", json={"refresh_token": wrong}) == "INVALID_REFRESH_TOKEN"
        assert code("/oauth/token", data={"grant_type": "refresh_token", "refresh_token": wrong}) == "invalid_grant"
    for name, wrong in ((USERNAME, access), (USERNAME, refresh), ("robot", key)):
        assert code("/auth/v1/login", json={"username": name, "password": wrong[:1024]}) == "INVALID_CREDENTIALS"
    for name, wrong in (("robot", access), ("robot", refresh), (USERNAME, PASSWORD), (USERNAME, key)):
        asking = {"grant_type": "client_credentials", "client_id": name, "client_secret": wrong[:256]}
        assert code("/oauth/token", data=asking) == "invalid_client"
    assert code("/oauth/token", data={"grant_type": "password", "username": USERNAME, "password": PASSWORD}) == (
        "unsupported_grant_type"
    )
