"""`app support-bundle`."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.composition import checks
from app.kernel.cli import Json, print_json, single
from app.kernel.errors import Conflict
from app.kernel.product import NAME
from app.processes import deployment

if TYPE_CHECKING:
    from app.kernel.doctor.bundle import Collected
    from app.kernel.doctor.deployment import Deployment

_ALL_S = 90.0


def support_bundle(
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="The archive.", show_default="named by the time")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an archive for a report: versions, settings, checks, states, errors, log. Secrets are redacted.

    It has no payloads of jobs, and of the environment only names. Look into it before you send it. A part that cannot
    be read is named in failed.json. Only you may read the archive (mode 600); a file that exists is not overwritten.

    \b
    Examples:
      app support-bundle
      app support-bundle --output /tmp/report.tar.gz
    """
    from app.kernel.doctor.bundle import collect, parts, remember_all, write
    from app.kernel.telemetry.logs import configure_command

    configure_command("support-bundle")
    path = output or Path(f"{NAME}-support-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.tar.gz")
    if os.path.lexists(path):
        raise Conflict(f"{path} exists, and is not overwritten; choose another with --output")
    examined = deployment()
    remember_all(examined)

    async def work(d: "Deployment") -> "Collected":
        try:
            async with asyncio.timeout(_ALL_S):
                return await collect(parts(d, checks()))
        finally:
            await d.close()

    runner = asyncio.Runner()
    contents, failed, is_late = runner.run(work(examined))
    try:
        write(path, contents, failed)
    except FileExistsError:
        raise Conflict(f"{path} exists, and is not overwritten; choose another with --output") from None
    except OSError as error:
        error.filename = str(path)  # a full disk names none
        raise
    if as_json:
        items = [{"name": name, "size_bytes": len(content)} for name, content in sorted(contents.items())]
        print_json({"path": str(path), "items": items, "failed": failed})
    else:
        from app.kernel.cli.tables import print_table

        rows = [(name, f"{len(content)} bytes") for name, content in contents.items()]
        print_table(("part", "content"), sorted([*rows, *((name, f"failed: {why}") for name, why in failed.items())]))
        sys.stdout.write(f"written to {path}\n")
    sys.stderr.write(f"Look into it before you send it: tar -xzOf {path} | less\n")
    sys.stdout.flush()
    if is_late:
        os._exit(0)  # a thread that hangs would keep the process
    runner.close()


typer_app = single(support_bundle)
