"""The page at /."""

import re
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from html.parser import HTMLParser

import httpx
import pytest

from app.kernel.http.asgi import Receive, Scope, Send, respond
from app.kernel.http.index import OPERATIONS, Index
from tests.support.serving import serving

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


async def beyond(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, 200, b"text/plain", b"beyond")


@asynccontextmanager
async def asking(app: Index) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an application; give a client of it."""
    async with serving(app) as served, httpx.AsyncClient(base_url=f"http://{served.host}:{served.port}") as client:
        yield client


class Page(HTMLParser):
    """What a page has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [str(value) for name, value in attrs if name == "href"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (BROWSER, "text/html; charset=utf-8"),
        ("text/html", "text/html; charset=utf-8"),
        ("text/*", "text/html; charset=utf-8"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/json, text/html;q=0.5", "application/json"),
        ("text/html;q=0.4, application/json;q=0.3", "text/html; charset=utf-8"),
        ("image/png", "application/json"),
        ("", "application/json"),
    ],
)
async def test_browsers_get_a_page_and_others_json(accept: str, expected: str) -> None:
    async with asking(Index("An API", OPERATIONS, beyond)) as client:
        answer = await client.get("/", headers={"accept": accept})
        head = await client.head("/", headers={"accept": accept})
    assert (answer.status_code, answer.headers["content-type"], answer.headers["vary"]) == (200, expected, "accept")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))
    if expected == "application/json":
        assert [link["href"] for link in answer.json()["links"]] == list(OPERATIONS)
    else:
        assert Page(answer.text).links == list(OPERATIONS)


async def test_the_page_needs_no_script_and_its_policy_allows_its_style_only() -> None:
    async with asking(Index("<An> API", OPERATIONS, beyond)) as client:
        answer = await client.get("/", headers={"accept": BROWSER})
    page, policy = Page(answer.text), answer.headers["content-security-policy"]
    assert not {"script", "iframe", "img", "link", "form"} & set(page.tags)
    assert "style" not in page.attributes
    assert not [name for name in page.attributes if name.startswith("on")]
    [style] = re.findall("<style>(.*?)</style>", answer.text, re.DOTALL)
    assert f"style-src 'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    # what a screen reader needs: a language, a title, a landmark, one heading; light and dark
    assert '<html lang="en">' in answer.text
    assert page.tags.count("h1") == page.tags.count("main") == page.tags.count("title") == 1
    assert "<title>&lt;An&gt; API</title>" in answer.text
    assert "color-scheme: light dark" in style


async def test_only_the_root_is_the_page() -> None:
    async with asking(Index("An API", OPERATIONS, beyond)) as client:
        assert (await client.get("/docs")).text == "beyond"
        refused = await client.post("/")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
