"""The reference: /docs, its assets, and the examples in /openapi.json, over the actions of all modules."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from app.kernel.actions import Action, declared
from app.kernel.actions.operation import ActionOperation
from app.kernel.http import reference
from app.kernel.http.assets import Assets
from app.kernel.http.examples import Examples
from app.kernel.http.openapi import openapi
from app.kernel.http.reference import Documentation
from app.kernel.http.reference.page import page
from app.modules import modules
from tests.support.serving import serving

FOLDER = Path(reference.__file__).parent
STYLE, SCRIPT = "/docs/assets/reference.0.css", "/docs/assets/reference.0.js"


def served() -> list[ActionOperation]:
    """Return every action with a route."""
    return [operation for operation in every_action() if operation.action.path]


def every_action() -> list[ActionOperation]:
    """Return every action, of features that were never made."""
    return [
        ActionOperation(action, getattr(object.__new__(feature), name), signature, None, None)
        for module in modules()
        for feature in module.feature_classes()
        for name, action, signature in declared(feature)
        if isinstance(action, Action)
    ]


@cache
def document() -> dict[str, Any]:
    return openapi(served(), "<All> of it")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def valid(schema: dict[str, Any], value: Any) -> list[str]:
    import jsonschema_rs

    whole = {**schema, "components": document()["components"]}
    return [error.message for error in jsonschema_rs.validator_for(whole).iter_errors(value)]


def examples(part: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield every example in the document with its place and its schema."""
    if isinstance(part, list):
        for each in part:
            yield from examples(each, place)
    elif isinstance(part, dict):
        if "schema" in part and "example" in part:
            yield place, part["schema"], part["example"]
        for key, value in part.items():
            yield from examples(value, f"{place}/{key}")


class Page(HTMLParser):
    """What the page has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.commands: list[str] = []
        self.text = ""
        self._in_code = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_code = tag == "code" and self.elements[-1][0] == "pre"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if self._in_code:
            self.commands.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_code = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_code:
            self.commands[-1] += data

    def all(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


@cache
def shown() -> Page:
    return Page(page(document(), STYLE, SCRIPT))


def test_every_example_is_valid_and_every_body_has_one() -> None:
    found = list(examples(document()["paths"]))
    assert {place: problems for place, schema, value in found if (problems := valid(schema, value))} == {}
    without = [
        f"{method} {path}"
        for method, path, operation in operations()
        for body in (operation.get("requestBody"), *operation["responses"].values())
        for content in (body or {}).get("content", {}).values()
        if content["schema"] != {"type": "string"}
        and not {"example", "examples"} & content.keys()
        and body is not operation["responses"]["default"]
        and content["schema"] != {"$ref": "#/components/schemas/Problem"}
    ]
    assert without == []
    problems = document()["components"]["examples"]
    assert {
        code: wrong
        for code, each in problems.items()
        if (wrong := valid(document()["components"]["schemas"]["Problem"], each["value"]))
    } == {}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 12},
        {"type": "string", "maxLength": 2},
        {"type": "integer", "minimum": 7},
        {"type": "integer", "exclusiveMinimum": 7},
        {"type": "number", "exclusiveMinimum": 2},
        {"type": "integer", "maximum": 0, "minimum": -3},
        {"anyOf": [{"type": "null"}, {"type": "string", "enum": ["b"]}]},
        {"const": None},
        {"type": "array", "items": {"type": "string", "format": "date-time"}, "minItems": 1},
        {"$ref": "#/components/schemas/Tree"},
    ],
)
def test_an_example_fits_the_bounds_of_its_schema(schema: dict[str, Any]) -> None:
    import jsonschema_rs

    tree = {
        "type": "object",
        "required": ["below", "name"],
        "properties": {"name": {"type": "string"}, "below": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
    }
    made = Examples([schema], {"Tree": tree}).of(schema)
    whole = {**schema, "$defs": {"Tree": tree}, "components": {"schemas": {"Tree": tree}}}
    assert jsonschema_rs.validator_for(whole).is_valid(made), made


def test_what_one_field_declares_serves_others_of_its_name() -> None:
    declared_once = {"type": "object", "properties": {"names": {"items": {"type": "string", "examples": ["ada"]}}}}
    found = Examples([declared_once], {})
    assert found.of({"type": "string"}, "name") == "ada"
    assert found.of({"type": "string", "maxLength": 2}, "name") == "st"
    assert found.of({"type": "array", "items": {"type": "string"}}, "names") == ["ada"]


def test_the_page_shows_every_operation_with_its_permission_and_its_refusals() -> None:
    for method, path, operation in operations():
        _, _, rest = shown().text.partition(f"{method} {path}\n{operation['summary']}")
        assert rest, f"{method} {path} is not on the page"
        for wanted in (operation.get("x-permission", ""), operation.get("x-command", "")):
            assert wanted in rest
        for response in operation["responses"].values():
            for code in (
                code for content in response.get("content", {}).values() for code in content.get("examples", ())
            ):
                assert code in rest, f"{method} {path} does not list {code}"


def test_every_command_sends_what_the_document_describes() -> None:
    commands = [shlex.split(text) for text in shown().commands if text.startswith("curl ")]
    for (method, path, operation), words in zip(operations(), commands, strict=True):
        url = urlsplit(words[3] if words[1] == "-X" else words[1])
        assert (words[2] if words[1] == "-X" else "GET") == method
        assert url.path.startswith(f"$URL{path.partition('{')[0]}")
        assert "{" not in url.path
        given = [each for each in operation.get("parameters", []) if each["in"] == "query" and each["required"]]
        assert dict(parse_qsl(url.query)).keys() == {each["name"] for each in given}
        headers = {words[at + 1] for at, word in enumerate(words) if word == "-H"}
        is_signed_in = operation["security"] and "bearer" in operation["security"][0]
        assert ("Authorization: Bearer $TOKEN" in headers) == bool(is_signed_in)
        bodies = [words[at + 1] for at, word in enumerate(words) if word == "-d"]
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            assert "Content-Type: application/json" in headers
            assert valid(content["application/json"]["schema"], json.loads(bodies[0])) == []
        else:
            assert bool(bodies) == bool(content)


def test_the_page_needs_nothing_inline_and_nothing_from_elsewhere() -> None:
    found = shown()
    assert not {"style", "iframe", "img", "object"} & {tag for tag, _ in found.elements}
    attributes = {name for _, each in found.elements for name in each}
    assert "style" not in attributes
    assert not [name for name in attributes if name.startswith("on")]
    assert [each["src"] for tag, each in found.elements if tag == "script"] == [SCRIPT]
    ids = found.all("id")
    assert len(ids) == len(set(ids))
    links = set(found.all("href")) - {STYLE, "/openapi.json"}
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert "<All> of it" in found.text, "the title is text, not markup"
    assert [each["hidden"] for tag, each in found.elements if tag == "form"] == [""], "search appears with its script"


async def test_it_is_served_with_a_strict_policy_and_assets_that_browsers_keep() -> None:
    documentation = Documentation(served()[:3], "An API")
    async with serving(documentation) as here, httpx.AsyncClient(base_url=f"http://{here.host}:{here.port}") as client:
        assert (await client.get("/docs/assets/reference.0.css")).status_code == 200, "also before the first page"
        answer = await client.get("/docs")
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self'; ")
        assert "unsafe" not in policy
        assets = [url for url in Page(answer.text).all("href") + Page(answer.text).all("src") if "/assets/" in url]
        assert [Path(url).suffix for url in assets] == [".css", ".js"]
        for url, name in zip(assets, ("reference.css", "reference.js"), strict=True):
            asset = await client.get(url)
            assert asset.content == (FOLDER / name).read_bytes()
            assert asset.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert (await client.get("/openapi.json")).json()["info"]["title"] == "An API"
        assert (await client.post("/docs")).status_code == 405
        assert (await client.get("/docs/")).status_code == 404


async def test_a_page_of_another_release_gets_the_present_asset_uncached(tmp_path: Path) -> None:
    (tmp_path / "a.min.js").write_text("present")
    (tmp_path / "secret.py").write_text("no asset")
    assets = Assets("/assets/", tmp_path)
    async with serving(assets) as here, httpx.AsyncClient(base_url=f"http://{here.host}:{here.port}") as client:
        kept, other = await client.get(assets.url("a.min.js")), await client.get("/assets/a.min.0123.js")
        wrong = ["a.min.js", "a.js", "secret.0123.py", "secret.py", "", "..%2fsecret.py", "b.0123.js"]
        missing = [(await client.get(f"/assets/{name}")).status_code for name in wrong]
    assert (kept.text, other.text) == ("present", "present")
    assert "immutable" in kept.headers["cache-control"]
    assert other.headers["cache-control"] == "no-store"
    assert missing == [404] * len(wrong)


def test_the_reference_loads_no_template_engine() -> None:
    code = "import sys, app.kernel.http.reference; raise SystemExit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
