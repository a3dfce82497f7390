"""/health, /ready and /metrics of every process, without a framework."""

import re
from collections.abc import Iterator, Mapping

from pydantic_core import to_json

from app.kernel.http.asgi import App, Receive, Scope, Send, respond
from app.kernel.http.problems import check_reads, nothing
from app.kernel.process import Process
from app.kernel.telemetry.metrics import FORMATS, exposition, exposition_of
from app.kernel.workers.families import merged

PATHS = frozenset({"/health", "/ready", "/metrics"})
_JSON = b"application/json"
_FRESH = ((b"cache-control", b"no-store"),)
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf"""[ \t]*;(?:[ \t]*({_WORD})=({_WORD}|"[^"\\]*"))?""")
_RANGE = re.compile(rf"[ \t]*({_WORD}/{_WORD})((?:{_PARAMETER.pattern})*)[ \t]*")
_ELEMENT = re.compile(r"""(?:[^,"]|"[^"]*")+""")
_QUALITY = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
_LONGEST = 4096


class Probes:
    """Answer the probes; pass everything else to the application.

    Unless it is `internal`, it answers /health and /ready with a status only, and not /metrics.
    """

    def __init__(self, process: Process, app: App = nothing, *, internal: bool = True) -> None:
        self._process = process
        self._app = app
        self._internal = internal
        self._paths = PATHS if internal else PATHS - {"/metrics"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path not in self._paths:
            await self._app(scope, receive, send)
            return
        check_reads(scope)
        if path == "/health":
            about = {"process": self._process.name} if self._internal else {}
            await respond(send, 200, _JSON, to_json({"status": "ok", **about}), _FRESH)
        elif path == "/metrics":
            body, content_type = await self._metrics(preferred(scope, FORMATS))
            await respond(send, 200, content_type, body, _FRESH)
        else:
            await self._ready(send)

    async def _metrics(self, media_type: str) -> tuple[bytes, bytes]:
        if (worker := self._process.launch.worker) is None:
            return exposition(media_type)
        return exposition_of(merged(*await worker.metrics_of_all()), media_type)

    async def _ready(self, send: Send) -> None:
        worker = self._process.launch.worker
        missing = await (worker.missing_of_all() if worker else self._process.missing())
        if missing:
            body = to_json({"status": "not ready", **({"missing": missing} if self._internal else {})})
            await respond(send, 503, _JSON, body, (*_FRESH, (b"retry-after", b"1")))
        else:
            degraded = {name: why for name, of in self._process.degraded.items() if (why := of())}
            body = to_json({"status": "ready", **({"degraded": degraded} if degraded and self._internal else {})})
            await respond(send, 200, _JSON, body, _FRESH)


def preferred(scope: Scope, offered: Mapping[str, frozenset[str]]) -> str:
    """Return the offered media type that `Accept` prefers; the first one when it accepts none of them.

    `offered` maps each type to its versions. Of equal qualities the more specific range wins, then the first type
    offered. Malformed elements are ignored.
    """
    accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
    ranges = list(_ranges(accept[:_LONGEST].decode("latin-1").lower()))
    best, best_rank = next(iter(offered)), (0.0, 0)
    for media_type, versions in offered.items():
        exactness, quality = max(_matches(ranges, media_type, versions), default=(0, 0.0))
        if quality > 0 and (quality, exactness) > best_rank:
            best, best_rank = media_type, (quality, exactness)
    return best


def _ranges(accept: str) -> Iterator[tuple[str, str, float]]:
    """Yield media range, version and quality of each well-formed element."""
    for element in _ELEMENT.findall(accept):
        if (found := _RANGE.fullmatch(element)) is None:
            continue
        parameters = dict(_PARAMETER.findall(found[2]))
        quality = parameters.get("q", "1")
        if _QUALITY.fullmatch(quality):
            yield found[1], parameters.get("version", "").strip('"'), float(quality)


def _matches(
    ranges: list[tuple[str, str, float]], media_type: str, versions: frozenset[str]
) -> Iterator[tuple[int, float]]:
    """Yield specificity and quality of each range that matches the type."""
    for name, version, quality in ranges:
        if name == media_type and (not version or version in versions):
            yield (4 if version else 3), quality
        elif name == f"{media_type.partition('/')[0]}/*":
            yield 2, quality
        elif name == "*/*":
            yield 1, quality
