"""Runs checks: all at once, each with a deadline, and all together within one."""

import asyncio
from collections.abc import Sequence

from app.kernel.config import Misconfigured
from app.kernel.doctor import Check, Finding, NotChecked, Result, fail
from app.kernel.doctor.deployment import Deployment
from app.kernel.product import NAME
from app.kernel.telemetry.redact import redacted
from app.kernel.text import error_text

_ALL_S = 30.0


async def run_checks(deployment: Deployment, checks: Sequence[Check], within_s: float = _ALL_S) -> list[Result]:
    """Return the result of each check, in their order. Never raises: a check that breaks is a failure of that check."""
    await deployment.fetch()
    tasks = [asyncio.ensure_future(_run(deployment, check)) for check in checks]
    await asyncio.wait(tasks, timeout=within_s)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=1)
    return [
        task.result() if task.done() and not task.cancelled() else _late(check, [], within_s)
        for task, check in zip(tasks, checks, strict=True)
    ]


async def _run(deployment: Deployment, check: Check) -> Result:
    found: list[Finding] = []
    try:
        async with asyncio.timeout(check.timeout_s):
            async for finding in check.run(deployment):
                found.append(finding)  # noqa: PERF401 - what was found before an error counts
    except NotChecked as reason:
        if not found:
            return Result(check, "skip", (), redacted(str(reason)))
    except Misconfigured:  # of a secret that it needs
        if not found:
            return Result(check, "skip", (), "a secret is missing, see secrets")
    except TimeoutError:
        return _late(check, found, check.timeout_s)
    except Exception as error:  # noqa: BLE001 - of any check
        found.append(
            fail(f"the check itself failed: {redacted(error_text(error))}", f"{NAME} support-bundle  # and report it")
        )
    return _result(check, found)


def _late(check: Check, found: list[Finding], seconds: float) -> Result:
    late = fail(f"the check did not end within {seconds:g} s", f"{NAME} doctor --only {check.name}  # again")
    return Result(check, "fail", (*found, late), is_late=True)


def _result(check: Check, found: list[Finding]) -> Result:
    levels = {finding.level for finding in found}
    return Result(check, "fail" if "fail" in levels else "warn" if levels else "ok", tuple(found))
