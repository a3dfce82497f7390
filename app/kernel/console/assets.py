"""The stylesheet and the scripts, under names that change with their content, so that browsers keep them for a year."""

import hashlib
from pathlib import Path

from app.kernel.console.requests import HEADERS, ROOT
from app.kernel.http.asgi import Send, respond

_FOLDER = Path(__file__).parent / "static"
_TYPES = {".css": b"text/css; charset=utf-8", ".js": b"text/javascript; charset=utf-8", ".svg": b"image/svg+xml"}
_KEPT = (b"cache-control", b"public, max-age=31536000, immutable")


class Assets:
    """The files of `static`, read once."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        self._found: dict[str, tuple[bytes, bytes]] = {}
        self._names: dict[str, str] = {}
        for file in sorted(folder.iterdir()):
            if file.suffix not in _TYPES:
                continue
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:12]
            self._names[file.name] = name = f"{file.name.removesuffix(file.suffix)}.{digest}{file.suffix}"
            self._found[name] = (_TYPES[file.suffix], content)

    def url(self, name: str) -> str:
        """Return the address of a file. Raises KeyError."""
        return f"{ROOT}/assets/{self._names[name]}"

    async def send(self, name: str, send: Send) -> bool:
        """Send a file; return whether there is one."""
        if name not in self._found:
            return False
        kind, content = self._found[name]
        headers = [each for each in HEADERS if each[0] != b"cache-control"]
        await respond(send, 200, kind, content, [_KEPT, *headers])
        return True
