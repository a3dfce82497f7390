"""The page at /: links to what a listener serves."""

import html
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256

from pydantic_core import to_json

from app.kernel.http.asgi import App, Receive, Scope, Send, respond
from app.kernel.http.probes import preferred
from app.kernel.http.problems import check_reads

_STYLE = """
:root { color-scheme: light dark; font: 1rem/1.6 system-ui, sans-serif; }
body { max-width: 40rem; margin: 3rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
ul { padding-left: 1.25rem; }
"""
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES: Mapping[str, frozenset[str]] = {"application/json": frozenset(), "text/html": frozenset()}
PROBES = {"/health": "whether the process lives", "/ready": "whether it accepts work"}
OPERATIONS = {
    "/docs": "reference of the API",
    "/openapi.json": "the same as OpenAPI 3.1",
    **PROBES,
    "/metrics": "metrics for Prometheus",
}


class Index:
    """Answer / with links, as HTML to browsers and as JSON to others; pass everything else to the application."""

    def __init__(self, title: str, links: Mapping[str, str], app: App) -> None:
        self._app = app
        self._bodies = {
            "application/json": to_json(
                {"title": title, "links": [{"href": path, "title": text} for path, text in links.items()]}
            ),
            "text/html": _page(title, links).encode(),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/":
            await self._app(scope, receive, send)
            return
        scope["state"]["route"] = "/"
        check_reads(scope)
        found = preferred(scope, _TYPES)
        kind = f"{found}; charset=utf-8" if found == "text/html" else found
        headers = [(b"content-security-policy", _POLICY.encode()), (b"vary", b"accept")]
        await respond(send, 200, kind.encode(), self._bodies[found], headers)


def _page(title: str, links: Mapping[str, str]) -> str:
    items = "\n".join(
        f'<li><a href="{html.escape(path)}">{html.escape(path)}</a>: {html.escape(text)}</li>'
        for path, text in links.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
<ul>
{items}
</ul>
</main>
</body>
</html>
"""
