"""Lists as CSV: all rows that match the filter of the page."""

from collections.abc import AsyncGenerator
from typing import Any

from app.kernel import csv
from app.kernel.actions.operation import Call
from app.kernel.console.pages import Reading
from app.kernel.console.requests import Request
from app.kernel.http.asgi import TIMEOUT
from app.kernel.http.results import File

SUFFIX = ".csv"
_AT_ONCE = "100"
_LONGEST_S = 60.0


async def download(reading: Reading, request: Request) -> File:
    """Return the rows of a list as CSV, up to a maximum. Raises Refusal."""
    request.scope[TIMEOUT](_LONGEST_S)
    run, form = reading.run, reading.form
    assert run is not None
    assert form is not None

    async def rows(cursor: str | None) -> Any:
        texts = {**request.query, "limit": _AT_ONCE, "cursor": cursor or ""}

        async def prepare() -> tuple[Call, Any]:
            return Call(request.signed_in.caller), form.decode(texts)

        return await run(request.signed_in.caller, prepare)

    first = await rows(None)  # refusals become a page

    async def parts() -> AsyncGenerator[bytes]:
        yield csv.heading(reading.columns).encode()
        found, count = first, 0
        while True:
            yield csv.lines(reading.columns, found.items).encode()
            count += len(found.items)
            if found.next_cursor is None:
                return
            if count >= csv.MOST_ROWS:
                yield f'"there are more than {csv.MOST_ROWS} rows; select fewer"\r\n'.encode()
                return
            found = await rows(found.next_cursor)

    return File(parts(), csv.MEDIA_TYPE, f"{reading.slug}{SUFFIX}")
