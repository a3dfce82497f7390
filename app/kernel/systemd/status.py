"""Reports the state of a process to systemd: its watchdog, and a text for `systemctl status`."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.kernel.process import Process

_EVERY_S = 5.0
_EXTENSION_S = 6 * _EVERY_S


@contextmanager
def reporting(p: "Process") -> Generator[None]:
    """Report the process to systemd inside, if that is asked for."""
    reports = [asyncio.ensure_future(_report_status(p))] if p.launch.notify.is_on else []
    if p.launch.notify.watchdog_s:
        reports.append(asyncio.ensure_future(_feed_watchdog(p)))
    try:
        yield
    finally:
        for report in reports:
            report.cancel()
        p.launch.notify.close()


async def _feed_watchdog(p: "Process") -> None:
    """Ping at half of the watchdog's period, until cancelled. Pings stop while something blocks the event loop."""
    while True:
        p.launch.notify.ping()
        await asyncio.sleep(p.launch.notify.watchdog_s / 2)


async def _report_status(p: "Process") -> None:
    """Report the status every few seconds if it has changed, and ask for more time while starting, until cancelled."""
    while True:
        if p.state == "starting":
            p.launch.notify.extend(_EXTENSION_S)  # migrations may take long; every other wait of a start has a limit
        p.launch.notify.status(await status_text(p))
        await asyncio.sleep(_EVERY_S)


async def status_text(p: "Process") -> str:
    """Return the state of a process, what is missing, and how many requests and jobs are in flight."""
    if p.state == "starting":
        return "starting"
    missing = await p.missing() if p.state == "ready" else {}
    text = "draining" if p.state == "stopping" else "ready"
    if missing:
        text = "not ready: " + "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    counts = [f"{count()} {what}" for what, count in sorted(p.in_flight.items())]
    return f"{text}; {' and '.join(counts)} in flight" if counts else text
