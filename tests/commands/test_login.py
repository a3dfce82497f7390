"""`app auth login`."""

import encodings.idna  # noqa: F401 - the user who signs in may not be able to read it
import json
import os
import pwd
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.request import Request, urlopen

import pyotp
import pytest

from app.kernel.errors import Unavailable
from app.modules.auth.remote import sign_in
from tests.commands.outcome import misused, printed_json
from tests.commands.terminal import END, terminal
from tests.conftest import SUPERUSER, TestDatabase, log_in
from tests.support.project import Project

USERNAME, PASSWORD = SUPERUSER
LOGIN = ("auth", "login", "--username", USERNAME)
WRONG = "incorrect horse battery staple"


@pytest.fixture
def copy(cli: Project, database: TestDatabase, tmp_path: Path) -> Project:
    """An installation of its own: processes of other tests are not found."""
    copied = cli.copy(tmp_path / "installation")
    copied.env |= database.env
    return copied


def test_a_token_of_the_running_process_is_printed(copy: Project) -> None:
    process = copy.start("run-auth-http")
    url = process.ready()
    client = log_in(copy, process)

    def accepted(token: str) -> bool:
        # not with httpx, which is watched: a token may not stand in any output, but for this command
        request = Request(f"{url}/auth/v1/me", headers={"Authorization": f"Bearer {token}"})
        with urlopen(request) as response:
            return response.status == 200

    with terminal(copy, *LOGIN) as asked:
        asked.expect("Password: ")
        asked.type(f"{PASSWORD}\n")
        assert asked.wait() == 0
    assert "A password has" not in asked.seen
    assert "Again" not in asked.seen
    assert accepted(asked.seen.split()[-1])

    program = shlex.join([copy.python, "-m", "app", *LOGIN, "--password-stdin", "--export"])
    script = f'eval "$(echo {shlex.quote(PASSWORD)} | {program})"; echo "$ACCESS_TOKEN"'
    shell = subprocess.run(
        ["sh", "-c", script], cwd=copy.root, env=copy.environment(), capture_output=True, text=True, check=True
    )
    assert accepted(shell.stdout.strip())

    answer = printed_json(copy.app(*LOGIN, "--password-stdin", "--json", "--url", url, stdin=PASSWORD))
    assert answer["actor"]["username"] == USERNAME
    assert accepted(answer["session"]["access_token"])

    wrong = copy.app(*LOGIN, "--password-stdin", stdin=WRONG)
    assert (wrong.returncode, wrong.stdout) == (77, "")
    assert wrong.stderr.splitlines() == [
        "app: the username or the password is wrong, or the username is locked or disabled",
        f"hint: app auth unlock --username {USERNAME}",
        f"hint: app auth reset-password --username {USERNAME}",
    ]

    begun = client.post("/auth/v1/me/totp", json={"current_password": PASSWORD}).json()
    totp = pyotp.TOTP(begun["secret"])
    used = totp.now()
    assert client.post("/auth/v1/me/totp/confirm", json={"otp": used}).status_code == 200
    told = copy.app(*LOGIN, "--password-stdin", stdin=PASSWORD)
    assert (told.returncode, told.stdout) == (77, "")
    assert told.stderr == "app: a one-time password is needed; run this on a terminal\n"
    with terminal(copy, *LOGIN) as asked:
        asked.expect("Password: ")
        asked.type(f"{PASSWORD}\n")
        asked.expect("One-time password: ")
        asked.type(f"{totp.at(time.time() + 30)}\n")  # each is accepted once
        assert asked.wait() == 0, asked.seen
    assert accepted(asked.seen.split()[-1])

    assert process.stop() == 0
    gone = copy.app(*LOGIN, "--password-stdin", "--url", url, stdin=PASSWORD)
    assert (gone.returncode, gone.stdout) == (69, "")
    assert gone.stderr.splitlines() == [
        f"app: nothing serves the auth API at {url}; start it, or give --url",
        "hint: app run-all-in-one",
    ]


def test_a_password_is_not_sent_to_another_machine_in_clear_text(cli: Project) -> None:
    elsewhere = (
        "http://192.0.2.1:8080",
        "http://example.com",
        "http://127.example.com",
        "http://localhost.example.com",
    )
    for url in (
        *elsewhere,
        "ftp://localhost",
        "localhost:8080",
        "https://localhost:99999",
        "http://[::1",
        "https://h:0",
    ):
        line = misused(cli.app(*LOGIN, "--password-stdin", "--url", url, stdin=PASSWORD))
        assert "--url" in line


@contextmanager
def answering(body: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Serve an answer to whoever signs in; yield the URL and what was sent there."""
    sent = list[bytes]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", sent
        server.shutdown()
        thread.join()


def test_a_password_is_not_sent_to_another_user_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    is_root, given = os.geteuid() == 0, {"username": USERNAME, "password": PASSWORD}
    if is_root:
        os.seteuid(65534)  # whose socket it is
    try:
        with answering(b'{"session": {"access_token": "a.b.c"}}') as (url, sent):
            if is_root:
                os.seteuid(0)
            assert sign_in([url], given, verified=True)
            sent.clear()
            if not is_root:
                monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
            with pytest.raises(Unavailable, match="belongs to the user"):
                sign_in([url], given, verified=False)
            assert sent == []
            if is_root:  # the user of our units may have it
                monkeypatch.setattr(pwd, "getpwnam", lambda _: SimpleNamespace(pw_uid=65534))
                assert sign_in([url], given, verified=False)
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize("token", ["a'; id #", "a\n", "", 1, None])
def test_an_answer_that_is_no_token_does_not_reach_the_shell(cli: Project, token: object) -> None:
    with answering(json.dumps({"session": {"access_token": token}}).encode()) as (url, _):
        done = cli.app(*LOGIN, "--password-stdin", "--export", "--url", url, stdin=PASSWORD)
        assert (done.returncode, done.stdout) == (69, "")
        assert done.stderr.splitlines() == [f"app: the answer of {url} is not that of the auth API"]


def test_nobody_to_ask_is_a_mistake_and_a_closed_prompt_a_refusal(cli: Project) -> None:
    assert "no terminal to ask on" in misused(cli.app(*LOGIN))
    with terminal(cli, *LOGIN) as asked:
        asked.expect("Password: ")
        asked.type(END)
        assert asked.wait() == 1
    assert "Traceback" not in asked.seen
    assert "nothing was typed" in asked.seen
