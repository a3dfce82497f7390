"""Static files with a hash of their content in their names, so that browsers can keep them for a year."""

from hashlib import sha256
from pathlib import Path

from app.kernel.http.asgi import App, Headers, Receive, Scope, Send, respond
from app.kernel.http.problems import HttpProblem, check_reads, nothing

_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_KEPT = (b"cache-control", b"public, max-age=31536000, immutable")
_NOT_KEPT = (b"cache-control", b"no-store")


class Assets:
    """Serve the style sheets, scripts and images of a folder under a path; pass everything else to the application.

    During a release, a page of another replica may ask for another hash: it gets the file of this one, uncached.
    """

    def __init__(self, path: str, folder: Path, app: App = nothing, headers: Headers = ()) -> None:
        self._path = path
        self._app = app
        self._headers = headers
        self._files = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in _TYPES}
        self._urls = {name: f"{path}{_hashed(name, content)}" for name, content in self._files.items()}

    def url(self, name: str) -> str:
        """Return the path of a file. Raises KeyError for an unknown one."""
        return self._urls[name]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if not path.startswith(self._path):
            await self._app(scope, receive, send)
            return
        scope["state"]["route"] = f"{self._path}{{name}}"
        check_reads(scope)
        stem, _, suffix = path.removeprefix(self._path).rpartition(".")
        name = f"{stem.rpartition('.')[0]}.{suffix}"
        if name not in self._files:
            raise HttpProblem(404)
        headers = [_KEPT if path == self._urls[name] else _NOT_KEPT, *self._headers]
        await respond(send, 200, _TYPES[f".{suffix}"], self._files[name], headers)


def _hashed(name: str, content: bytes) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{sha256(content).hexdigest()[:12]}.{suffix}"
