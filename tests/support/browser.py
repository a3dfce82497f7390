"""A browser without scripts: it keeps cookies, and fills in and sends the forms of pages."""

import html
import re
from dataclasses import dataclass, field

import httpx

from app.kernel.product import NAME

SESSION = f"{NAME}-console"
_TOKEN = re.compile(r'name="_csrf" value="([^"]*)"')


@dataclass
class Browser:
    """What one person has open."""

    url: str
    client: httpx.Client = field(init=False)
    token: str = ""
    """The token of the forms of the last page."""

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, timeout=20, headers={"Sec-Fetch-Site": "same-origin"})

    def get(self, path: str, **query: str) -> httpx.Response:
        return self._seen(self.client.get(path, params=query or None))

    def post(self, path: str, **fields: str) -> httpx.Response:
        """Send a form with the token of the last page, unless another one is given."""
        return self._seen(self.client.post(path, data={"_csrf": self.token, **fields}))

    def press(self, action: str, **fields: str) -> httpx.Response:
        return self.post(f"/console/press/{action}", **fields)

    def sign_in(self, username: str, password: str, target: str = "/console/me") -> httpx.Response:
        self.get("/console/sign-in")
        answer = self.post("/console/sign-in", username=username, password=password, next=target)
        if answer.headers.get("location") == target:
            self.get(target)
        return answer

    @property
    def session(self) -> str:
        return self.client.cookies.get(SESSION) or ""

    def plant(self, token: str) -> None:
        """Replace the cookie of the session."""
        self.client.cookies.clear()
        self.client.cookies.set(SESSION, token, domain="127.0.0.1", path="/")

    def _seen(self, answer: httpx.Response) -> httpx.Response:
        if found := _TOKEN.search(answer.text):
            self.token = html.unescape(found[1])
        return answer
