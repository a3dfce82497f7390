"""/health, /ready and /metrics, the same in every process, without a framework."""

from pydantic_core import to_json

from app.kernel.http.asgi import App, Receive, Scope, Send, respond
from app.kernel.http.negotiation import preferred
from app.kernel.http.problems import HttpProblem
from app.kernel.process import Process
from app.kernel.telemetry.metrics import FORMATS, exposition

PATHS = frozenset({"/health", "/ready", "/metrics"})
_JSON = b"application/json"
_FRESH = ((b"cache-control", b"no-store"),)


class Operations:
    """Answer the operators' paths; everything else goes to the application, if there is one."""

    def __init__(self, process: Process, app: App | None = None) -> None:
        self._process = process
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path not in PATHS:
            if self._app is None:
                raise HttpProblem(404)
            await self._app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            raise HttpProblem(405, headers=((b"allow", b"GET, HEAD"),))
        if path == "/health":
            await respond(send, 200, _JSON, to_json({"status": "ok", "process": self._process.name}), _FRESH)
        elif path == "/metrics":
            body, content_type = exposition(preferred(scope, FORMATS))
            await respond(send, 200, content_type, body, _FRESH)
        else:
            await self._ready(send)

    async def _ready(self, send: Send) -> None:
        missing = await self._process.missing()
        if missing:
            body = to_json({"status": "not ready", "missing": missing})
            await respond(send, 503, _JSON, body, (*_FRESH, (b"retry-after", b"1")))
        else:
            await respond(send, 200, _JSON, to_json({"status": "ready"}), _FRESH)
