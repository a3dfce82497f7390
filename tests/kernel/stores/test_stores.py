"""Secrets in Vault and AWS: fetched when they are used, and one clear line when they cannot be."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hvac
import pytest

from app.kernel.config import Misconfigured, PostgresSettings, StoresUnavailable, load
from app.kernel.config.stores import CannotFetch, Stores
from app.modules.auth.settings import AuthSettings
from app.processes import sections
from tests.conftest import TestDatabase
from tests.kernel.stores.conftest import MASTER, PASSWORD, Vault, fetch, openbao, settings
from tests.support.project import ROOT, Project, eventually

MASTER_IN_VAULT = "secret://vault/secret/app/production#master"


def refusal(environ: dict[str, str], kind: type[Misconfigured] = Misconfigured) -> tuple[str, str]:
    """Return the line and the hint of a refusal."""
    with pytest.raises(Misconfigured) as caught:
        settings(environ)
    assert type(caught.value) is kind
    [line] = str(caught.value).splitlines()
    hint = caught.value.hint
    assert MASTER not in line + hint
    assert PASSWORD not in line + hint
    return line, hint


# Vault


def test_any_setting_is_fetched_from_vault_in_the_environment_and_in_files(vault: Vault, tmp_path: Path) -> None:
    for name in ("default", "test"):
        (tmp_path / "settings").mkdir(exist_ok=True)
        (tmp_path / f"settings/{name}.yaml").write_text((ROOT / f"settings/{name}.yaml").read_text())
    (tmp_path / "settings/.secrets.yaml").write_text("postgres:\n  user: secret://vault/secret/db#user\n")
    (tmp_path / "reference").write_text("secret://vault/secret/db#password\n")
    environ = {
        "APP_ENV": "test",
        "POSTGRES_PASSWORD_FILE": str(tmp_path / "reference"),
        "POSTGRES_PORT": "secret://vault/secret/app/production#port",
        "AUTH_MASTER_SECRET": MASTER_IN_VAULT,
        **vault.environ,
    }
    found = load(tmp_path, sections(), environ)
    found.demand(*sections())
    postgres = found[PostgresSettings]
    assert (postgres.user, postgres.port) == ("of-vault", 5499)
    assert postgres.password.get_secret_value() == PASSWORD
    assert found[AuthSettings].master_secret.get_secret_value() == MASTER
    shown = {value.key: (value.value, value.source) for value in found.values()}
    assert shown["postgres.user"] == ("********", "settings/.secrets.yaml (secret://vault/secret/db#user)")
    assert shown["auth.master_secret"] == ("********", f"AUTH_MASTER_SECRET ({MASTER_IN_VAULT})")
    assert not [secret for secret in (MASTER, PASSWORD) if secret in repr(found) + repr(shown)]


def test_a_secret_is_fetched_by_who_uses_it() -> None:
    environ = {"APP_ENV": "test", "AUTH_MASTER_SECRET": MASTER_IN_VAULT}
    environ |= {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "x"}
    found = load(ROOT, sections(), environ)
    found.demand(PostgresSettings)
    with pytest.raises(StoresUnavailable):
        found.demand(AuthSettings)


def test_approle_and_kubernetes_log_in(vault: Vault, tmp_path: Path) -> None:
    token = vault.policy("secret/data/app/*")
    client, address = vault.client, {"VAULT_ADDR": vault.environ["VAULT_ADDR"], "HOME": str(tmp_path)}
    assert fetch({**address, "VAULT_TOKEN": token}, MASTER_IN_VAULT) == MASTER
    (tmp_path / ".vault-token").write_text(f"{token}\n")
    assert fetch(address, MASTER_IN_VAULT) == MASTER
    client.sys.enable_auth_method("approle", path="apps")
    client.auth.approle.create_or_update_approle("app", token_policies=["test"], mount_point="apps")
    role_id = client.auth.approle.read_role_id("app", mount_point="apps")["data"]["role_id"]
    (tmp_path / "secret-id").write_text(
        client.auth.approle.generate_secret_id("app", mount_point="apps")["data"]["secret_id"]
    )
    approle = {**address, "VAULT_ROLE_ID": role_id, "VAULT_AUTH_MOUNT": "apps"}
    assert fetch({**approle, "VAULT_SECRET_ID_FILE": str(tmp_path / "secret-id")}, MASTER_IN_VAULT) == MASTER
    with pytest.raises(CannotFetch, match="refuses the login") as caught:
        fetch({**approle, "VAULT_SECRET_ID": "wrong"}, MASTER_IN_VAULT)
    assert "VAULT_SECRET_ID" in caught.value.hint
    jwt = tmp_path / "jwt"
    jwt.write_text("of-the-service-account")
    with answering(lambda path, body: _kubernetes(path, body, token)) as url:
        kubernetes = {"VAULT_ADDR": url, "VAULT_KUBERNETES_ROLE": "app", "VAULT_JWT_FILE": str(jwt)}
        assert fetch({**kubernetes, "VAULT_NAMESPACE": "team"}, MASTER_IN_VAULT) == MASTER


def _kubernetes(path: str, body: bytes, token: str) -> bytes:
    if path == "/v1/auth/kubernetes/login":
        assert json.loads(body) == {"role": "app", "jwt": "of-the-service-account"}
        return json.dumps({"auth": {"client_token": token}}).encode()
    if path.startswith("/v1/sys/internal/ui/mounts/"):
        return json.dumps({"data": {"path": "secret/", "type": "kv", "options": {"version": "2"}}}).encode()
    assert path == "/v1/secret/data/app/production", path
    return json.dumps({"data": {"data": {"master": MASTER}}}).encode()


@contextmanager
def answering(answer: object, location: str = "") -> Iterator[str]:
    """Serve answers: a function of path and body, or bytes; or redirect there."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = answer(self.path, body) if callable(answer) else answer
            self.send_response(307 if location else 200)
            self.send_header("Content-Type", "application/json")
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextmanager
def trickling() -> Iterator[str]:
    """Send one byte of an answer every now and then, which no timeout of a socket notices."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000:
                        connection.sendall(bytes([byte]))
                        time.sleep(0.05)
                except OSError:
                    pass

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("reference", "said", "hint"),
    [
        ("secret://vault/secret/app/production#none", "no key none", "it has flag, master, port"),
        ("secret://vault/secret/app/production#flag", "neither a text nor a number", "store the value as a text"),
        ("secret://vault/secret/absent#master", "Vault has no secret secret/absent", "vault kv get secret/absent"),
        ("secret://vault/secret/data/db#password", "Vault has no secret secret/data/db", "has no data/"),
        ("secret://vault/cubbyhole/x#master", "cubbyhole is no KV mount", "KV engine, version 2"),
        ("secret://vault/one/x#master", "one is KV version 1", "enable-versioning one"),
        ("secret://vault/secret#master", "malformed", "secret://vault/secret/app#password"),
        ("secret://vault/secret/app", "malformed", "secret://vault/secret/app#password"),
        ("secret://vault/secret/../sys/x#k", "malformed", "secret://vault/PATH#KEY"),
        ("secret://vault/secret/a?x=1#k", "malformed", "secret://vault/PATH#KEY"),
        ("secret://vault", "malformed", "secret://vault/PATH#KEY"),
        ("secret://", "not a store", "secret://vault/PATH#KEY"),
        ("SECRET://gcp/x#y", "not a store", "secret://vault/PATH#KEY"),
    ],
)
def test_what_cannot_be_found_in_vault_is_one_line_with_key_and_remedy(
    vault: Vault, reference: str, said: str, hint: str
) -> None:
    if "one/" in reference:
        vault.client.sys.enable_secrets_engine("kv", path="one", options={"version": "1"})
    line, given = refusal({"AUTH_MASTER_SECRET": reference, **vault.environ})
    assert line.startswith("settings for APP_ENV=test: auth.master_secret (AUTH_MASTER_SECRET): ")
    assert said in line
    assert hint in given


def test_a_vault_that_denies_or_does_not_answer_is_one_line(vault: Vault) -> None:
    environ = {"AUTH_MASTER_SECRET": MASTER_IN_VAULT, "VAULT_TOKEN": vault.policy("secret/data/db")}
    line, hint = refusal({**environ, "VAULT_ADDR": vault.environ["VAULT_ADDR"]})
    assert "denies reading secret/app/production (403)" in line
    assert "secret/data/app/production" in hint
    assert "VAULT_ADDR is not set" in refusal(environ)[0]
    assert "VAULT_ADDR is no URL" in refusal({**environ, "VAULT_ADDR": "vault:8200"})[0]
    assert "no way to log in" in refusal({"AUTH_MASTER_SECRET": MASTER_IN_VAULT, "VAULT_ADDR": "http://127.0.0.1:1"})[0]
    line, hint = refusal({**environ, "VAULT_ADDR": "http://127.0.0.1:1"}, StoresUnavailable)
    assert "cannot be reached" in line
    for malformed in (b"", b"<html>", b"[]", b'{"data": {"data": null}}', b'{"data": 1}'):
        with answering(malformed) as url:
            line, hint = refusal({**environ, "VAULT_ADDR": url}, StoresUnavailable)
            assert "is not that of Vault" in line
    for large in (b" " * (1 << 20) + b"{}", b'{"data": "' + b"x" * 20_000_000 + b'"}'):
        with answering(large) as url:
            line, hint = refusal({**environ, "VAULT_ADDR": url}, StoresUnavailable)
            assert "is larger than 1 MiB" in line
    with trickling() as url:
        began = time.monotonic()
        with pytest.raises(CannotFetch, match=r"did not answer within 0\.5 s") as caught:
            fetch({"VAULT_ADDR": url, "VAULT_TOKEN": "x"}, MASTER_IN_VAULT, 0.5)
        assert not caught.value.is_final
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "login",
    [
        {"VAULT_TOKEN": "t0ken-of-vault"},
        {"VAULT_ROLE_ID": "role", "VAULT_SECRET_ID": "t0ken-of-vault"},
    ],
)
def test_a_redirect_gets_no_token(login: dict[str, str]) -> None:
    reached = list[str]()

    def other(path: str, _: bytes) -> bytes:
        reached.append(path)
        return b"{}"

    with answering(other) as elsewhere, answering(b"", f"{elsewhere}/v1/x") as url:
        environ = {"AUTH_MASTER_SECRET": MASTER_IN_VAULT, "VAULT_ADDR": url.replace("://", "://me:passw0rd@"), **login}
        line, hint = refusal(environ)
        assert f"{url} redirects, and is not followed" in line
        assert "VAULT_ADDR" in hint
        assert reached == []


def test_a_vault_with_tls_is_trusted_by_its_authority_and_a_namespace_has_its_own_secrets(tmp_path: Path) -> None:
    (tmp_path / "garbage").write_text("x")
    with openbao(tmp_path, tls=True) as own:
        trusted = own.environ | {"VAULT_CACERT": str(tmp_path / "vault-ca.pem")}
        assert fetch(trusted, MASTER_IN_VAULT) == MASTER
        own.client.adapter.post("/v1/sys/namespaces/team", json={})
        team = hvac.Client(
            url=own.environ["VAULT_ADDR"], token="root", verify=trusted["VAULT_CACERT"], namespace="team"
        )
        team.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})
        eventually(lambda: _written(team, "app/production", {"master": MASTER[::-1]}))
        assert fetch(trusted | {"VAULT_NAMESPACE": "team"}, MASTER_IN_VAULT) == MASTER[::-1]
        for more, message, hint in (
            ({}, f"the certificate of {own.environ['VAULT_ADDR']} is not trusted", "VAULT_CACERT"),
            ({"VAULT_CACERT": str(tmp_path / "garbage")}, "is not trusted", "VAULT_CACERT"),
            ({"VAULT_CACERT": "/absent"}, "VAULT_CACERT: cannot read /absent", "the file"),
            (trusted | {"VAULT_CLIENT_CERT": "/absent"}, "VAULT_CLIENT_CERT: cannot read /absent", "the file"),
            (trusted | {"VAULT_NAMESPACE": "nobody"}, "Vault has no secret secret/app/production", "VAULT_NAMESPACE"),
        ):
            with pytest.raises(CannotFetch) as caught:
                fetch(own.environ | more, MASTER_IN_VAULT)
            assert message in str(caught.value)
            assert hint in caught.value.hint


def _written(client: hvac.Client, path: str, values: dict[str, str]) -> object:
    """Write a secret; return None while its engine is not ready."""
    try:
        return client.secrets.kv.v2.create_or_update_secret(path, values)
    except hvac.exceptions.VaultError:
        return None


def test_a_sealed_vault_is_one_line(tmp_path: Path) -> None:
    with openbao(tmp_path) as own:
        own.client.sys.seal()
        line, hint = refusal({"AUTH_MASTER_SECRET": MASTER_IN_VAULT, **own.environ}, StoresUnavailable)
        assert ("sealed" in line, hint) == (True, "unseal it")


def test_the_time_of_all_secrets_is_bounded_together() -> None:
    began = time.monotonic()
    with trickling() as url:
        stores = Stores({"VAULT_ADDR": url, "VAULT_TOKEN": "x"}, 0.6)
        for name in ("a", "b", "c", "d"):
            with pytest.raises(CannotFetch, match=r"within 0\.6 s"):
                stores.fetch(f"secret://vault/secret/{name}#x")
    assert time.monotonic() - began < 2


def test_a_fetched_secret_is_judged_as_any_other(vault: Vault) -> None:
    vault.client.secrets.kv.v2.create_or_update_secret("weak", {"short": "of-vault-tiny", "port": "many-0f-them"})
    line = refusal_of_value({"AUTH_MASTER_SECRET": "secret://vault/secret/weak#short", **vault.environ})
    assert "at least 32 characters" in line
    assert "of-vault-tiny" not in line
    line = refusal_of_value({"POSTGRES_PORT": "secret://vault/secret/weak#port", **vault.environ})
    assert "a valid integer" in line
    assert "many-0f-them" not in line


def refusal_of_value(environ: dict[str, str]) -> str:
    with pytest.raises(Misconfigured) as caught:
        settings(environ)
    return str(caught.value)


# AWS


@pytest.mark.usefixtures("aws")
def test_secrets_of_aws_are_json_plain_and_binary() -> None:
    assert fetch({}, "secret://aws/app/db#password") == PASSWORD
    assert fetch({}, "secret://aws/plain") == MASTER
    assert fetch({}, "secret://aws/binary") == MASTER


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("secret://aws/absent", "AWS has no secret absent"),
        ("secret://aws/gone", "marked for deletion"),
        ("secret://aws/app/db", "several keys"),
        ("secret://aws/app/db#none", "no key none"),
        ("secret://aws/plain#key", "not a JSON object"),
        ("secret://aws/#key", "malformed"),
    ],
)
def test_what_cannot_be_found_in_aws_is_one_line_with_key_and_remedy(reference: str, said: str) -> None:
    line, hint = refusal({"AUTH_MASTER_SECRET": reference})
    assert "auth.master_secret (AUTH_MASTER_SECRET): " in line
    assert said in line
    assert hint


@pytest.mark.usefixtures("no_aws")
def test_aws_that_denies_or_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(code: str, status: int) -> str:
        body = json.dumps({"__type": code, "message": MASTER}).encode()
        with answering_aws(body, status) as url:
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            kind = Misconfigured if status < 500 else StoresUnavailable
            return refusal({"AUTH_MASTER_SECRET": "secret://aws/plain"}, kind)[0]

    assert "denies reading plain (403)" in refused("AccessDeniedException", 400)
    assert "refuses the credentials (ExpiredTokenException)" in refused("ExpiredTokenException", 400)
    assert "failed (InternalServiceError)" in refused("InternalServiceError", 500)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "cannot be reached" in refusal({"AUTH_MASTER_SECRET": "secret://aws/plain"}, StoresUnavailable)[0]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    assert "no credentials" in refusal({"AUTH_MASTER_SECRET": "secret://aws/plain"})[0]
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert "no AWS region" in refusal({"AUTH_MASTER_SECRET": "secret://aws/plain"})[0]


@contextmanager
def answering_aws(body: bytes, status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# Commands


def test_commands_exit_with_the_status_of_the_reason_and_show_no_secret(
    cli: Project, vault: Vault, database: TestDatabase
) -> None:
    cli.env |= {**vault.environ, **database.env, "AUTH_MASTER_SECRET": MASTER_IN_VAULT}
    done = cli.app("auth", "keys", "list", "--json")
    assert (done.returncode, '"kid"' in done.stdout) in ((0, True), (69, False)), done.stderr
    shown = cli.app("config", "show", "--json")
    assert MASTER not in shown.stdout + shown.stderr
    valid = cli.app("config", "validate")
    assert (valid.returncode, valid.stderr) == (0, "")
    absent = cli.app("run-auth-http", "--port", "0", env={"AUTH_MASTER_SECRET": "secret://vault/secret/absent#x"})
    assert (absent.returncode, absent.stderr.splitlines()[0][:70]) == (
        78,
        "app: settings for APP_ENV=test: auth.master_secret (AUTH_MASTER_SECRET",
    )
    assert absent.stderr.splitlines()[1].startswith("hint: ")
    away = {"VAULT_ADDR": "http://127.0.0.1:1"}
    assert cli.app("run-auth-http", "--port", "0", env=away).returncode == 69
    assert cli.app("health", "--port", "1", env=away).returncode == 69
    assert "cannot be reached" not in cli.app("health", "--port", "1", env=away).stderr


@pytest.mark.parametrize(("library", "store"), [("hvac", "vault/secret/x"), ("boto3", "aws/x")])
def test_a_missing_extra_is_one_line_and_is_imported_by_who_fetches_only(
    cli: Project, tmp_path: Path, library: str, store: str
) -> None:
    code = (
        "import sys, importlib.util as u; found = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {library!r} else found(name, *a)\n"
        "from app.cli import main; sys.argv = ['app', 'config', 'validate']\n"
        "try: main()\n"
        f"finally: assert {library!r} not in sys.modules\n"
    )
    done = subprocess.run(
        [cli.python, "-c", code],
        cwd=cli.root,
        env=cli.environment({"AUTH_MASTER_SECRET": f"secret://{store}#key"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    assert f"{library} is not installed" in done.stderr
    assert f"hint: pip install '{library}>=" in done.stderr
