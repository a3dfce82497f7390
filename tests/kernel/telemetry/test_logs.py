"""Logs of real processes: what they say, what they hide, and what happens when nobody can take them."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from app.kernel.config import LoggerSettings
from app.kernel.telemetry import logs
from app.kernel.telemetry.redact import HIDDEN, redacted, redacted_fields, remember
from tests.conftest import log_in
from tests.support.project import Project, eventually

ME = "/auth/v1/me"


def dropped(client: httpx.Client, signal_name: str) -> float:
    said = client.get("/metrics").text
    found = re.search(rf'^telemetry_dropped_total{{signal="{signal_name}"}} (\S+)$', said, re.MULTILINE)
    assert found
    return float(found[1])


def test_a_line_of_a_request_says_who_did_what(project: Project) -> None:
    process = project.start("run-auth-http")
    client = log_in(project, process)
    actor = client.get(ME, headers={"X-Request-ID": "mine"}).json()["actor"]

    def line() -> dict:
        found = [line for line in process.logs() if line.get("request_id") == "mine"]
        assert found
        return found[-1]

    said = eventually(line)
    assert said["actor_id"] == actor["id"]
    assert said["operation"] == "auth.get_me"
    assert re.fullmatch(r"GET /auth/v1/me 200 in [\d.]+ ms", said["message"])
    assert re.fullmatch(r"[0-9a-f]{32}", said["trace_id"])
    assert re.fullmatch(r"[0-9a-f]{16}", said["span_id"])


def test_every_line_within_a_request_or_a_job_says_whose_it_is(project: Project) -> None:
    process = project.start("run-all-in-one", env={"LOGGER_LEVEL": "debug"})
    client = log_in(project, process)
    actor = client.get(ME, headers={"X-Request-ID": "mine"}).json()["actor"]
    client.post("/platform/v1/schedules/platform.heartbeat/trigger")

    def within(beginning: str) -> dict:
        return next((line for line in process.logs() if line["message"].startswith(beginning)), {})

    of_request = eventually(lambda: within("auth.get_me done in"))
    about = ("request_id", "actor_id", "operation")
    assert tuple(of_request[name] for name in about) == ("mine", actor["id"], "auth.get_me")
    assert of_request["trace_id"]
    of_job = eventually(lambda: within("platform.heartbeat done in"))
    job = eventually(lambda: within("job done"))
    assert (of_job["task"], of_job["operation"]) == ("platform.heartbeat", "platform.heartbeat")
    assert of_job["job_id"] == job["job_id"]
    assert (job["attempt"], job["operation"]) == (1, "platform.heartbeat")


def test_a_log_file_is_opened_anew_after_logrotate_has_moved_it(project: Project, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    process = project.start("run-event-consumer", env={"LOGGER_OUTPUT": str(log)})

    def url() -> str:
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return next((line["url"] for line in lines if "url" in line), "")

    client = project.client(eventually(url))
    eventually(lambda: client.get("/ready").status_code == 200)
    log.rename(tmp_path / "app.log.1")
    process.signal(signal.SIGHUP)
    eventually(log.exists)
    assert process.stop() == 0
    assert "stopped" in log.read_text()
    assert "stopped" not in (tmp_path / "app.log.1").read_text()


JOURNAL = """
import os, sys
from loguru import logger
from app.kernel.config import LoggerSettings
from app.kernel.telemetry import logs
about = os.fstat(1)
os.environ["JOURNAL_STREAM"] = f"{about.st_dev}:{about.st_ino + int(sys.argv[2])}"
logs.configure(LoggerSettings("debug", sys.argv[1], "stdout"), "test")
for level in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
    logger.log(level, "one line")
    logs.ended("INFO", "the end of a request")
"""


def test_lines_for_the_journal_begin_with_their_priority(cli: Project) -> None:
    def begins(form: str, other: int) -> list[str]:
        ended = subprocess.run(
            [cli.python, "-c", JOURNAL, form, str(other)], cwd=cli.root, capture_output=True, text=True, check=True
        )
        return [line[:3] for line in ended.stdout.splitlines()[::2]]

    priorities = ["<7>", "<6>", "<4>", "<3>", "<2>"]
    assert begins("json", 0) == begins("console", 0) == priorities
    assert not set(priorities) & {*begins("json", 1), *begins("console", 1)}


def test_a_log_that_never_pauses_is_opened_anew_all_the_same(tmp_path: Path) -> None:
    log, stop = tmp_path / "log", threading.Event()
    logs.configure(LoggerSettings("info", "json", str(log)), "test")

    def talk() -> None:
        while not stop.is_set():
            logs.ended("INFO", "and so on")

    talking = threading.Thread(target=talk)
    talking.start()
    try:
        eventually(lambda: log.stat().st_size)
        log.rename(tmp_path / "log.1")
        os.kill(os.getpid(), signal.SIGHUP)
        eventually(lambda: log.exists() and log.stat().st_size)
    finally:
        stop.set()
        talking.join()
        logs.configure(LoggerSettings("info", "json", "/dev/null"), "test")


def test_a_full_disk_stops_no_request_and_what_was_not_written_is_counted(project: Project) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    port = _free_port()
    process = project.start("run-auth-http", "--port", str(port), env={"LOGGER_OUTPUT": "/dev/full"})
    client = project.client(f"http://127.0.0.1:{port}")
    eventually(lambda: _status(client, "/ready") == 200)
    assert client.get(ME).status_code == 401
    eventually(lambda: dropped(client, "logs") > 0)
    assert process.stop() == 0


def test_of_many_errors_alike_a_few_have_their_stack(tmp_path: Path) -> None:
    log = tmp_path / "log"
    logs.configure(LoggerSettings("info", "json", str(log)), "test")
    try:
        for number in range(1000):
            fail(ValueError(f"number {number}"))
        fail(KeyError("once"))
    finally:
        logs.configure(LoggerSettings("info", "json", "/dev/null"), "test")
    said = [line["exception"] for line in eventually(lambda: whole(log, 1001))]
    often, once = said[:1000], said[1000]
    few = [text for text in often if "Traceback" in text]
    assert 3 <= len(few) <= 6  # they may have taken two seconds
    assert "in fail" in once
    assert [text for text in often if text.startswith("ValueError: number 9")]


def fail(error: Exception) -> None:
    try:
        raise error
    except type(error):
        logger.opt(exception=error).error("it failed")


def whole(log: Path, count: int) -> list[dict]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == count, len(lines)
    return lines


def test_secrets_in_the_context_are_hidden_on_every_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    logs.configure(LoggerSettings("info", "json", str(log)), "test")
    logs.new_context(request_id="r1")
    logs.context(api_key="s3cr3t-1", note="password=s3cr3t-2", order=5)
    try:
        logger.info("in the middle")
        logs.ended("INFO", "over")
        for _ in range(8):
            logs.failed(ValueError("token=s3cr3t-3"), "failed", token="s3cr3t-4")
    finally:
        logs.new_context()
        logs.configure(LoggerSettings("info", "json", "/dev/null"), "test")
    lines = eventually(lambda: whole(log, 10))
    assert {(line["request_id"], line["order"], line["api_key"]) for line in lines} == {("r1", 5, "***")}
    assert "s3cr3t" not in log.read_text()


def test_fields_do_not_hide_those_that_every_line_has(tmp_path: Path) -> None:
    log = tmp_path / "log"
    logs.configure(LoggerSettings("info", "json", str(log)), "test")
    try:
        logger.bind(message="mine", time=1, process="p").info("the message")
    finally:
        logs.configure(LoggerSettings("info", "json", "/dev/null"), "test")
    (line,) = eventually(lambda: whole(log, 1))
    assert (line["message"], line["process"]) == ("the message", "test")
    assert (line["message_"], line["time_"], line["process_"]) == ("mine", 1, "p")
    assert log.read_text().count('"time":') == 1


def test_an_error_that_cannot_be_printed_is_logged_all_the_same(tmp_path: Path) -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    log = tmp_path / "log"
    logs.configure(LoggerSettings("info", "json", str(log)), "test")
    try:
        for _ in range(8):
            fail(Unprintable())
            logs.failed(Unprintable(), "failed")
    finally:
        logs.configure(LoggerSettings("info", "json", "/dev/null"), "test")
    lines = eventually(lambda: whole(log, 16))
    assert all("Unprintable" in line["exception"] for line in lines)


def test_lines_of_many_threads_are_all_written_each_in_its_order(tmp_path: Path) -> None:
    log, each = tmp_path / "log", 300
    logs.configure(LoggerSettings("info", "json", str(log)), "test")

    def say(thread: int) -> None:
        for number in range(each):
            if number % 2:
                logs.ended("INFO", "{} {}", thread, number)
            else:
                logger.info("{} {}", thread, number)

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(say, range(4)))
    finally:
        logs.configure(LoggerSettings("info", "json", "/dev/null"), "test")
    said = [line["message"].split() for line in eventually(lambda: whole(log, 4 * each))]
    for thread in range(4):
        assert [int(number) for of, number in said if of == str(thread)] == list(range(each))


def test_a_pipe_that_nobody_reads_stops_no_request_and_not_the_end_either(project: Project) -> None:
    port = _free_port()
    read, write = os.pipe()
    try:
        popen = subprocess.Popen(
            [project.python, "-m", "app", "run-auth-http", "--port", str(port)],
            cwd=project.root,
            env=project.environment({"LOGGER_LEVEL": "debug"}),
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=subprocess.DEVNULL,
        )
        os.close(write)
        client = project.client(f"http://127.0.0.1:{port}")
        eventually(lambda: _status(client, "/ready") == 200)

        def some_dropped() -> bool:
            _pipelined(port, 900)
            return dropped(client, "logs") > 0

        eventually(some_dropped, 120)
        assert client.get(ME).status_code == 401
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(30) == 0
    finally:
        os.close(read)
        popen.kill()
        popen.wait()


def _pipelined(port: int, count: int) -> None:
    """Send many requests at once; return when all are answered."""
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        for _ in range(count // 100):
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            answers = b""
            while answers.count(b"HTTP/1.1 200") < 100 and (more := sock.recv(65536)):
                answers += more


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def _status(client: httpx.Client, path: str) -> int:
    try:
        return client.get(path).status_code
    except httpx.HTTPError:
        return 0


SECRET = "Tr0ub4dor-3"


@pytest.mark.parametrize(
    "text",
    [
        f'{{"password": "{SECRET}"}}',
        f"{{'new_password': '{SECRET}'}}",
        f"password={SECRET}",
        f"current_password = {SECRET} and more",
        rf"{{\"refresh_token\": \"{SECRET}\"}}",
        f"Authorization: Bearer {SECRET}xyz",
        f"authorization: basic {SECRET}xyz",
        f"Cookie: session={SECRET}",
        f"postgresql://app:{SECRET}@db.example.com/app",
        f"redis://:{SECRET}@cache:6379",
        f"api_key={SECRET}",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
    ],
)
def test_secrets_in_texts_are_hidden(text: str) -> None:
    assert SECRET not in redacted(text)
    assert HIDDEN in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "rt_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g",
        "app_0190a1b2c3d4e5f60718293a4b5c6d7e_secretsecretsecret",
    ],
)
def test_tokens_are_hidden_wherever_they_stand(text: str) -> None:
    assert text not in redacted(f"before {text} after")
    assert text not in redacted(repr(f"before\n{text}"))


@pytest.mark.parametrize(
    "text",
    [
        "GET /auth/v1/me 200 in 1.2 ms",
        "the password is wrong",
        "job 0190a1b2-c3d4-7e5f-8607-18293a4b5c6d of auth.reset_password",
        "serving http://127.0.0.1:8080",
        "app_name is set",
        "the slot app_backup_production_shop is unused: pg_drop_replication_slot('app_backup_production_shop')",
        "/tmp/app_backup_app-7713208701104095616-0.wal belongs to another user",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_fields_with_a_secret_name_are_hidden_at_every_depth() -> None:
    fields = {"user": "you", "Password": "x", "body": {"otp": 123456, "list": [{"api_key": "k"}, f"token={SECRET}"]}}
    assert redacted_fields(fields) == {
        "user": "you",
        "Password": HIDDEN,
        "body": {"otp": HIDDEN, "list": [{"api_key": HIDDEN}, f"token={HIDDEN}"]},
    }


def test_secrets_of_the_settings_are_hidden_whatever_they_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.kernel.telemetry.redact._known", [])
    remember(["plain words", "short"])
    assert redacted("it said: plain words, short") == f"it said: {HIDDEN}, short"


@given(st.text())
def test_hiding_never_fails_and_is_safe_to_repeat(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)


def test_tokens_within_a_remembered_url_are_redacted_and_its_host_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.kernel.telemetry.redact._known", [])
    host = "a-long-name-of-a-host.example.com"
    remember([f"mailto://me:p%40ssw0rd-long-enough@{host}/T1/abcdefghijklmnopqrstuvwx"])
    assert redacted("POST https://hooks/abcdefghijklmnopqrstuvwx") == "POST https://hooks/***"
    assert redacted("it is p@ssw0rd-long-enough") == "it is ***"
    assert redacted(f"no answer of {host}") == f"no answer of {host}"
