"""The search for leaked secrets finds them: otherwise that it finds none would say nothing."""

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import psycopg
import pytest

from tests.conftest import TestDatabase, in_memory, log_in
from tests.support.leaks import WATCH, Server, Watch, forms
from tests.support.project import ROOT, Project

SECRET = 'a "planted" secret, of 42 \\ characters-é'
REFRESH = "rt_" + base64.urlsafe_b64encode(bytes(range(56))).rstrip(b"=").decode()
JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJlLW9mLWEtdG9rZW4"
API_KEY = f"app_{'1' * 32}_{'ab' * 32}12345678"


def found_in(text: str, *secrets: str) -> list[str]:
    watch = Watch()
    for secret in secrets:
        watch.secret("a secret", secret)
    watch.texts.append(("a log", text))
    watch.search_written()
    return watch.end()


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        (SECRET, SECRET),
        (SECRET, '{"message": "a \\"planted\\" secret, of 42 \\\\ characters-\\u00e9"}'),
        (SECRET, "/login?password=a%20%22planted%22%20secret%2C%20of%2042%20%5C%20characters-%C3%A9 200"),
        (SECRET, "password=a+%22planted%22+secret%2C+of+42+%5C+characters-%C3%A9"),
        (SECRET, f"\\x{SECRET.encode().hex()}"),
        (SECRET, base64.b64encode(SECRET.encode()).decode()),
        (JWT, f"Bearer {JWT}"),
        (JWT, "signature c2lnbmF0dXJlLW9mLWEtdG9rZW4"),
        (REFRESH, f"mac {bytes(range(24, 56)).hex()}"),
        (API_KEY, f"secret {'ab' * 32}"),
        ("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", f"\\x{b'12345678901234567890'.hex()}"),
        ("abcd-efgh-ijkl-mnop", "abcdefghijklmnop"),
    ],
)
def test_a_secret_is_found_however_it_is_written(secret: str, text: str) -> None:
    leaks = found_in(text, secret)
    assert leaks == ["a secret in a log"]


def test_a_folder_in_memory_is_searched_before_it_goes(tmp_path: Path) -> None:
    with in_memory(tmp_path) as folder:
        WATCH.secret("a secret", SECRET)
        (folder / "log").write_text(SECRET)
        WATCH.files.append(("a log", folder / "log"))
    assert WATCH.end() == ["a secret in a log"]


def test_what_is_public_or_short_is_no_leak() -> None:
    header, payload, _ = JWT.split(".")
    key_id = "01a203b0-05ad-765f-894f-4156cb4538e8"
    assert found_in(f"{header} {payload} {'1' * 32} 123456 {key_id}", JWT, API_KEY, "123456", key_id) == []
    assert all(len(form) >= 8 for form in forms("12345678"))


def test_secrets_of_requests_and_answers_are_known() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"session": {"access_token": "the-access-token"}})
        return httpx.Response(422, json={"recovery_codes": ["the-first-code"], "detail": request.content.decode()})

    before = set(WATCH.secrets)
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://here") as client:
        client.get("/", params={"token": "in-the-query"}, auth=("me", "basic-password"))
        client.post("/x", json={"deep": [{"password": "in-the-json"}]}, headers={"authorization": "Bearer in-a-header"})
        client.post("/y", data={"client_secret": "in-the-form"})
    known = {*WATCH.secrets} - before
    assert known == {
        "the-access-token", "the-first-code", "in-the-query", "basic-password", "in-the-json", "in-a-header",
        "in-the-form", base64.b64encode(b"me:basic-password").decode(),
    }  # fmt: skip
    leaks = WATCH.end()
    assert leaks == [
        "client_secret in the answer 422 to POST /y",
        "password in the answer 422 to POST /x",
        "recovery_codes in the answer 422 to POST /x",
        "recovery_codes in the answer 422 to POST /y",
    ]


def test_secrets_of_processes_are_known(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in-a-file\n")
    (tmp_path / "typed").write_text("in-another-file\n")
    (tmp_path / "key").write_text("-----BEGIN PRIVATE KEY-----\nfirst-line\nsecond-line\n-----END PRIVATE KEY-----\n")
    watch = Watch()
    watch.environment(
        ROOT,
        {
            "APP_ENV": "test",
            "AUTH_MASTER_SECRET": "in-the-environment",
            "POSTGRES_PASSWORD_FILE": str(tmp_path / "file"),
            "HTTP_SERVER_TLS_KEY": str(tmp_path / "key"),
            "REDIS_URL": "redis://me:in-an-address@localhost/",
            "PATH": "/usr/bin:/bin",
        },
    )
    watch.arguments(("auth", "x", "--password-stdin"), "on-stdin\n")
    watch.arguments(("auth", "x", "--password-file", str(tmp_path / "typed")), None)
    assert watch.secrets.keys() == {
        "test-only-master-secret-that-everybody-knows", "in-the-environment", "in-a-file", "in-an-address",
        "on-stdin", "in-another-file", "first-line", "second-line",
    }  # fmt: skip


def found_in_tables(database: TestDatabase) -> list[str]:
    server = database.server
    watch = Watch(databases={Server(server.host, str(server.port), server.user, "", database.name)})
    watch.secret("a secret", [SECRET, "hidden-away", "in raw bytes"])
    watch.search_live()
    return watch.end()


@pytest.mark.parametrize(
    ("kind", "value"),
    [("text", SECRET), ("text[]", [SECRET]), ("jsonb", '["hidden-away"]'), ("bytea", b"in raw bytes")],
)
def test_a_secret_in_a_table_is_found(database: TestDatabase, kind: str, value: object) -> None:
    database.run(f'CREATE SCHEMA "A b"; CREATE TABLE "A b".t (id int, x {kind}) PARTITION BY LIST (id)')
    database.run('CREATE TABLE "A b".t1 PARTITION OF "A b".t DEFAULT; CREATE TABLE empty (x text)')
    assert found_in_tables(database) == []
    database.run('INSERT INTO "A b".t VALUES (1, NULL), (2, %s)', value)
    assert found_in_tables(database) == ["a secret in table A b.t1"]


class Metrics(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'requests_total{route="/login?password=in-a-label"} 1\n'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metrics() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_secret_in_a_metric_label_is_found(metrics: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text(f'{{"message": "serving", "url": "{metrics}"}}\n')
    watch = Watch()
    watch.secret("a secret", "in-a-label")
    watch.processes.append(("run-x", tmp_path / "out"))
    watch.search_live()
    assert watch.end() == ["a secret in /metrics of run-x"]


def test_everything_that_a_test_writes_to_is_searched(project: Project, database: TestDatabase, tmp_path: Path) -> None:
    process = project.start("run-auth-http")
    log_in(project, process)
    (tmp_path / "log").write_text(f"{SECRET}\n")
    project.environment({"LOGGER_OUTPUT": str(tmp_path / "log")})
    with process.output.open("a") as log:
        log.write(f"{SECRET}\n")
    database.run("CREATE TABLE planted AS SELECT %s AS x", SECRET)
    with psycopg.connect(database.conninfo) as connection, pytest.raises(psycopg.Error):
        connection.execute(f"SELECT $${SECRET}$$::int")  # the server logs what it refuses
    project.app("config", "explain", SECRET)
    WATCH.secret("a secret", SECRET)
    WATCH.search_live()
    WATCH.search_written()
    leaks = WATCH.end()
    assert leaks == [
        "a secret in stderr of app config explain",
        "a secret in stdout of app run-auth-http",
        "a secret in table public.planted",
        "a secret in the log file",
        "a secret in the server's server.log",
    ]


LEAKING = """
def test_that_leaks(cli):
    cli.app("config", "explain", "very-secret-thing", env={"POSTGRES_PASSWORD": "very-secret-thing"})
def test_after_it(cli):
    cli.app("config", "explain", "very-secret-thing")
"""


def test_a_leak_fails_the_test_that_leaked_and_says_where_but_not_what(tmp_path: Path) -> None:
    (tmp_path / "test_planted.py").write_text(LEAKING)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir"]
    done = subprocess.run(
        [*command, str(tmp_path), "-c", str(ROOT / "pyproject.toml"), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "2 passed, 1 error" in done.stdout
    assert "secrets leaked: POSTGRES_PASSWORD in stderr of app config explain" in done.stdout
