"""The least that a queue in PostgreSQL can do, on psycopg: what this machine allows.

`python -m benchmarks.peer_raw WHAT NUMBER...`, see the last lines.
"""

import os
import sys
import threading
import time
from queue import SimpleQueue

import psycopg

from benchmarks.tally import Tally, moments, say_ready

SCHEMA = """
    CREATE TABLE IF NOT EXISTS jobs (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload jsonb NOT NULL, state text NOT NULL DEFAULT 'ready'
    );
    CREATE INDEX IF NOT EXISTS jobs_ready ON jobs (id) WHERE state = 'ready'
"""
LEASE = """
    UPDATE jobs SET state = 'leased' WHERE id IN (
        SELECT id FROM jobs WHERE state = 'ready' ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED
    ) RETURNING id, (payload ->> 'at')::float8
"""
DELETE = "DELETE FROM jobs WHERE id = ANY(%s)"
INSERT = "INSERT INTO jobs (payload) SELECT unnest(%s::text[])::jsonb"
TELLING = "WITH added AS (INSERT INTO jobs (payload) VALUES (%s::jsonb)) SELECT pg_notify('raw', %s)"
NOTHING = '{"at": 0}'


def connect() -> psycopg.Connection:
    return psycopg.connect(os.environ["PEER_DSN"], autocommit=True)


def fill(count: int) -> None:
    with connect() as connection:
        connection.execute(SCHEMA)
        with connection.cursor().copy("COPY jobs (payload) FROM STDIN") as copy:
            for _ in range(count):
                copy.write_row((NOTHING,))


def work(count: int) -> None:
    """Lease and delete in batches of a hundred."""
    tally = Tally(count)
    with connect() as connection:
        say_ready()
        while rows := connection.execute(LEASE).fetchall():
            connection.execute(DELETE, ([row[0] for row in rows],))
            for _ in rows:
                tally()


def enqueue(one: int, batches: int, copied: int) -> None:
    with connect() as connection:
        connection.execute(SCHEMA)
        started = time.monotonic()
        for _ in range(one):
            connection.execute(INSERT, ([NOTHING],))
        after_one = time.monotonic()
        for _ in range(batches):
            connection.execute(INSERT, ([NOTHING] * 100,))
        after_batches = time.monotonic()
        fill(copied)
        after_all = time.monotonic()
    Tally.tell(
        one=one / (after_one - started),
        batches=100 * batches / (after_batches - after_one),
        copied=copied / (after_all - after_batches),
    )


def listen(count: int) -> None:
    """Hear of a job, lease it, delete it; tell how late the notification was, and the lease."""
    leased: SimpleQueue[list[int]] = SimpleQueue()
    notified_s: list[float] = []
    leased_s: list[float] = []

    def delete() -> None:
        with connect() as connection:
            while ids := leased.get():
                connection.execute(DELETE, (ids,))

    deleter = threading.Thread(target=delete)
    deleter.start()
    with connect() as listener, connect() as connection:
        listener.execute("LISTEN raw")
        say_ready()
        for notification in listener.notifies():
            notified_s.append(time.monotonic() - float(notification.payload))
            rows = connection.execute(LEASE).fetchall()
            leased_s += [time.monotonic() - sent for _, sent in rows]
            if rows:
                leased.put([row[0] for row in rows])
            if len(leased_s) == count:
                break
    leased.put([])
    deleter.join()
    Tally.tell(late_s=leased_s, notified_s=notified_s)


def trickle(count: int, per_s: int) -> None:
    with connect() as connection:
        for moment in moments(count, per_s):
            time.sleep(max(0.0, moment - time.monotonic()))
            sent = time.monotonic()
            connection.execute(TELLING, (f'{{"at": {sent}}}', str(sent)))


if __name__ == "__main__":
    {"fill": fill, "work": work, "enqueue": enqueue, "listen": listen, "trickle": trickle}[sys.argv[1]](
        *(int(text) for text in sys.argv[2:])
    )
