"""Celery on Redis, which keeps nothing on disk here.

`python -m benchmarks.peer_celery fill COUNT | work COUNT | trickle COUNT PER_S`
"""

import os
import sys
import time

from celery import Celery
from celery.signals import worker_ready

from benchmarks.tally import Tally, moments, say_ready

app = Celery("bench", broker=os.environ.get("PEER_REDIS", ""))
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=128, worker_redirect_stdouts=False)
tally = Tally(int(sys.argv[2]) if len(sys.argv) > 2 else 0)


@app.task(name="nothing")
def nothing(at: float) -> None:
    tally(at)


@worker_ready.connect
def ready(**_: object) -> None:
    say_ready()


def fill(count: int) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            nothing.apply_async((0.0,), producer=producer)


def work(_: int) -> None:
    """One worker process under its parent; threads, `solo` and two of them were tried and are slower."""
    options = ["--pool=prefork", "--concurrency=1", "--without-gossip", "--without-mingle", "--loglevel=ERROR"]
    app.worker_main(["worker", *options])


def trickle(count: int, per_s: int) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        for moment in moments(count, per_s):
            time.sleep(max(0.0, moment - time.monotonic()))
            nothing.apply_async((time.monotonic(),), producer=producer)


if __name__ == "__main__":
    {"fill": fill, "work": work, "trickle": trickle}[sys.argv[1]](*(int(text) for text in sys.argv[2:]))
