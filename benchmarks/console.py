"""The console and `app status` over much data, and what open tabs cost the queue.

`python -m benchmarks.console [rounds [share of the data]]`
"""

import html
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from string import Template
from threading import Event, Thread

import psycopg

from benchmarks.measure import PYTHON, Broken, Table, free_port, interleaved, postgres, project, scratch, wait_ready
from tests.support.browser import SESSION, Browser
from tests.support.project import ROOT, Project

ROWS = {"jobs": 100_000, "letters": 10_000, "errors": 1_000, "audit": 1_000_000, "finished": 50_000, "events": 50_000}
REQUESTS, STARTS, TABS, NO_OPS = 20, 7, 20, 100_000
PASSWORD = "correct horse battery staple"
STREAM = r'hx-sse:connect="([^"]+)"'
LINK = r'href="(/console/[^"#?]+)"'
TRACE = "lpad(to_hex(n % 50000 + 1), 32, '0')"
SEED = (
    f"""
    INSERT INTO kernel.jobs (id, queue, task, payload, state, run_at, rank, attempt, max_attempts, timeout_s,
        trace_context)
    SELECT kernel.uuid7(), 'seeded' || n % 10, 'seeded.task' || n % 50,
        jsonb_build_object('order', n, 'email', n || '@example.com'),
        CASE WHEN n % 3 = 0 THEN 'scheduled' ELSE 'ready' END, now() + (n % 600 - 300) * interval '1 second', n,
        n % 3, 10, 60, '00-' || {TRACE} || '-0000000000000001-01'
    FROM generate_series(1, $jobs) n
    """,
    f"""
    INSERT INTO kernel.dead_letters
        (id, queue, task, payload, reason, cause, attempt, max_attempts, timeout_s, errors, created_at, died_at,
        trace_context)
    SELECT kernel.uuid7(), 'seeded' || n % 10, 'seeded.task' || n % 50, jsonb_build_object('order', n),
        'gave up after 10 attempts', md5((n % 40)::text), 10, 10, 60,
        jsonb_build_array(jsonb_build_object('attempt', 10, 'at', now(), 'error', 'TimeoutError: ' || n % 40)),
        now() - interval '1 day', now() - n * interval '5 seconds', '00-' || {TRACE} || '-0000000000000001-01'
    FROM generate_series(1, $letters) n
    """,
    """
    INSERT INTO kernel.errors (fingerprint, kind, type, title, culprit, state, count, processes, first_seen_at,
        last_seen_at, first_release, last_release, samples, hourly, hourly_at)
    SELECT md5(n::text), CASE WHEN n % 2 = 0 THEN 'http' ELSE 'job' END, 'ValueError', 'value ' || n,
        'app.seeded:' || n,
        (ARRAY['open', 'resolved', 'muted', 'regressed'])[n % 4 + 1], n, ARRAY['run-all-in-one'],
        now() - interval '9 days', now() - n * interval '1 minute', '1.0', '1.1',
        (SELECT jsonb_agg(jsonb_build_object('at', now(), 'trace_id', md5((n + k)::text),
            'request_id', md5((k - n)::text),
            'message', repeat('what went wrong ', 20), 'stack', repeat('File app/seeded.py, line 7 ', 50)))
            FROM generate_series(1, 5) k),
        array_fill(n::bigint, ARRAY[24]), now()
    FROM generate_series(1, $errors) n
    """,
    f"""
    INSERT INTO kernel.audit (id, at, action, outcome, target, details, address, user_agent, request_id, trace_id)
    SELECT kernel.uuid7(), now() - ($audit - n) * interval '5 seconds', 'auth.action' || n % 60,
        CASE WHEN n % 50 = 0 THEN 'denied' ELSE 'done' END, 'actor:' || n % 5000, jsonb_build_object('n', n),
        '10.0.' || n % 250 || '.' || n % 199, 'Mozilla/5.0', md5(n::text), {TRACE}
    FROM generate_series(1, $audit) n
    """,
    f"""
    INSERT INTO kernel.finished_jobs
        (id, queue, task, payload, outcome, attempt, trace_context, created_at, finished_at)
    SELECT kernel.uuid7(), 'seeded' || n % 10, 'seeded.task' || n % 50, jsonb_build_object('order', n), 'done', 0,
        '00-' || {TRACE} || '-0000000000000001-01', now() - interval '2 days', now() - n * interval '1 second'
    FROM generate_series(1, $finished) n
    """,
    f"""
    INSERT INTO kernel.events (id, type, version, payload, trace_context, published_at)
    SELECT kernel.uuid7(), 'seeded.type' || n % 20, 1, jsonb_build_object('n', n),
        '00-' || {TRACE} || '-0000000000000001-01', now() - n * interval '1 second'
    FROM generate_series(1, $events) n
    """,
    "INSERT INTO kernel.queues (name) SELECT 'seeded' || n FROM generate_series(0, 9) n",
    """
    INSERT INTO kernel.subscriptions (subscriber, event_type)
    SELECT 'seeded.hear' || n, 'seeded.type' || n FROM generate_series(0, 19) n
    """,
    """
    INSERT INTO kernel.rollouts (id, at, name, version, settings)
    SELECT kernel.uuid7(), now() - n * interval '4 hours', 'run-all-in-one', '1.' || n, '{}'
    FROM generate_series(1, 6) n
    """,
    """
    INSERT INTO kernel.series (resolution, at, measured_at, seconds, counts, gauges)
    SELECT size, date_trunc(size, now()) - n * ('1 ' || size)::interval, now(),
        extract(epoch FROM ('1 ' || size)::interval),
        jsonb_build_object('requests', 6000 + n, 'requests_le_0.025', 5900, 'requests_le_0.1', 100 + n,
            'jobs_done', 900 + n, 'errors', n % 7, 'done_in:seeded1', 900 + n),
        jsonb_build_object('ready', n, 'dead', 10000, 'oldest_ready_s', n)
    FROM (VALUES ('minute', 1440), ('hour', 24)) sizes (size, count), generate_series(0, count) n
    """,
    "INSERT INTO auth.roles (id, name) SELECT kernel.uuid7(), 'seeded-' || n FROM generate_series(1, 50) n",
    """
    INSERT INTO auth.actors (id, type, username, username_key)
    SELECT kernel.uuid7(), 'user', 'seeded-' || n, 'seeded-' || n FROM generate_series(1, 5000) n
    """,
)
ENQUEUE = """
    INSERT INTO kernel.jobs (id, queue, task, payload, rank, max_attempts, timeout_s)
    SELECT kernel.uuid7(), 'default', 'bench.nothing', '{"at": 0, "group": -1}', kernel.job_rank(now(), 0), 1, 60
    FROM generate_series(1, %s) n
"""


def seed(connection: psycopg.Connection, share: float) -> None:
    given = {name: max(1, int(count * share)) for name, count in ROWS.items()}
    for statement in SEED:
        connection.execute(Template(statement).substitute(given).encode())
    connection.execute("VACUUM (ANALYZE)")


def pages(browser: Browser) -> list[str]:
    """Return the pages of the navigation, one details page of each that has some, and one trace."""
    found = dict.fromkeys(re.findall(LINK, browser.get("/console/me").text.partition("<main")[0]))
    top = [path for path in found if "/assets/" not in path and "/sign-" not in path]
    below = [
        next((link for link in re.findall(LINK, browser.get(path).text) if re.match(rf"{path}/[^/]+$", link)), "")
        for path in top
    ]
    return [*top, *filter(None, below), f"/console/traces/{5:032x}"]


def p95_ms(browser: Browser, path: str) -> float:
    """Return it of some requests, after two that warm."""
    took_s: list[float] = []
    for _ in range(REQUESTS + 2):
        started = time.perf_counter()
        status = browser.get(path).status_code
        took_s.append(time.perf_counter() - started)
        if status != 200:
            raise Broken(f"{path}: {status}")
    return sorted(took_s[2:])[int(REQUESTS * 0.95) - 1] * 1000


def starts(of: Project) -> dict[str, float]:
    """Return the seconds of commands. `app status` says 1: dead letters need attention."""

    def one(*arguments: str) -> Callable[[], float]:
        def measure() -> float:
            started = time.perf_counter()
            done = of.app(*arguments)
            if done.returncode not in (0, 1) or not done.stdout:
                raise Broken(done.stderr)
            return time.perf_counter() - started

        return measure

    measures = {" ".join(each): one(*each) for each in (("status",), ("--help",), ("queues", "list"))}
    interleaved(measures, 1)  # warms
    return interleaved(measures, STARTS)


@contextmanager
def tabs(browser: Browser, port: int, paths: list[str]) -> Generator[None]:
    """Keep streams of live pages open, and read what comes."""
    selector, done = selectors.DefaultSelector(), Event()
    streams = [html.unescape(found[1]) for path in paths if (found := re.search(STREAM, browser.get(path).text))]
    for stream in (streams * TABS)[:TABS]:
        tab = socket.create_connection(("127.0.0.1", port), 10)
        lines = [f"GET {stream} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Cookie: {SESSION}={browser.session}"]
        tab.sendall("\r\n".join([*lines, "\r\n"]).encode())
        if b" 200 " not in (answer := tab.recv(4096))[:16]:
            raise Broken(f"{stream}: {answer!r}")
        selector.register(tab, selectors.EVENT_READ)

    def read() -> None:
        while not done.is_set():
            for key, _ in selector.select(0.2):
                if not key.fileobj.recv(1 << 20):  # type: ignore[union-attr]
                    raise Broken("the server ended a stream")

    thread = Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        selector.close()


def jobs_per_s(of: Project, connection: psycopg.Connection, count: int) -> float:
    """Return how many jobs that do nothing a worker does a second."""
    connection.execute(ENQUEUE, (count,))
    env = of.environment() | {"APP_ENV": "test"}
    command = [PYTHON, "-m", "benchmarks.queue_worker", str(count)]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        found = next((json.loads(line) for line in worker.stdout if line.startswith('{"first"')), None)
        worker.terminate()
    if found is None:
        raise Broken("the worker ended")
    return (count - 1) / (found["last"] - found["first"])


def main() -> None:
    given = [float(text) for text in sys.argv[1:]]
    rounds, share = given + [4, 1.0][len(given) :]
    table = Table(f"The console over {share:.0%} of the data, one client; open tabs in {rounds:g} rounds in turns")
    with scratch() as folder, postgres(folder / "pg") as server, project(folder, server) as of:
        of.env |= {"AUTH_MASTER_SECRET": os.urandom(32).hex()}
        port = free_port()
        create = ("auth", "create-superuser", "--username", "root", "--password-stdin")
        for command, given_in in ((("migrate", "up"), ""), (create, PASSWORD)):
            if (made := of.app(*command, stdin=given_in)).returncode:
                raise Broken(made.stderr)
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            seed(connection, share)
            wait_ready(of.start("run-platform-http", "--port", str(port)).popen, port)  # type: ignore[arg-type]
            browser = Browser(f"http://127.0.0.1:{port}")
            browser.sign_in("root", PASSWORD)
            shown = pages(browser)
            for path in shown:
                table.add(f"`{re.sub('[0-9a-f-]{32,}', '{id}', path)}`, p95", p95_ms(browser, path), " ms", most=150)
            for command, seconds in starts(of).items():
                most = 0.6 if command == "status" else None
                table.add(f"`app {command}`, median of {STARTS}", seconds * 1000, " ms", most=most and most * 1000)
            count = max(1000, int(NO_OPS * share))

            def open_tabs() -> float:
                with tabs(browser, port, shown):
                    return jobs_per_s(of, connection, count)

            found = interleaved({"without": lambda: jobs_per_s(of, connection, count), "with": open_tabs}, int(rounds))
            for name, per_s in found.items():
                table.add(f"no-op jobs, {name} {TABS} open tabs", per_s, "/s")
            table.add("with / without", found["with"] / found["without"] * 100, "%", least=95)
            browser.client.close()
    table.show()


if __name__ == "__main__":
    main()
