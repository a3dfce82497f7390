"""OpenAPI 3.1 from the same declarations that are served, and a page for people to read it."""

import html
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from app.kernel.callers import BasicAuth, BearerToken
from app.kernel.decoding import TIME, adapter
from app.kernel.http.asgi import App, Receive, Scope, Send, respond
from app.kernel.http.authenticators import Bearer
from app.kernel.http.codecs import Form
from app.kernel.http.problems import HttpProblem, title_of
from app.kernel.http.routes import Route, has_body, input_type, path_parameters, refusals, sends_itself
from app.kernel.product import VERSION

_NO_NUL = "^[^\\u0000]*$"
_SEGMENT = "^[^/\\u0000]*$"
_REFERENCE = "#/components/schemas/{model}"
_BASIC = {"type": "http", "scheme": "basic"}
_PROBLEM = {
    "type": "object",
    "description": "Problem details (RFC 9457)",
    "required": ["type", "title", "status", "detail", "code", "request_id", "trace_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "request_id": {"type": "string"},
        "trace_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {"type": "object", "properties": {"field": {"type": "string"}, "message": {"type": "string"}}},
        },
    },
}


def openapi(routes: Sequence[Route], title: str) -> dict[str, Any]:
    """Return the OpenAPI document of some routes."""
    schemas = _Schemas(routes)
    schemes = {kind.name: kind.scheme for kind in (Bearer, *(route.authenticator for route in routes))}
    paths: dict[str, dict[str, Any]] = {}
    for number, route in enumerate(routes):
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, number, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": VERSION},
        "servers": [{"url": "/", "description": "Where this document was served"}],
        "paths": paths,
        "components": {
            "schemas": {**schemas.definitions, "Problem": _PROBLEM},
            "securitySchemes": {**schemes, "basic": _BASIC},
        },
    }


class Documentation:
    """Answer /openapi.json and /docs; everything else goes to the application. Made when first asked for."""

    def __init__(self, app: App, routes: Sequence[Route], title: str) -> None:
        self._app = app
        self._routes = routes
        self._title = title
        self._made: dict[str, tuple[bytes, bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in ("/openapi.json", "/docs"):
            await self._app(scope, receive, send)
            return
        scope["state"]["route"] = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            raise HttpProblem(405, headers=((b"allow", b"GET, HEAD"),))
        if not self._made:
            document = openapi(self._routes, self._title)
            self._made = {
                "/openapi.json": (b"application/json", json.dumps(document).encode()),
                "/docs": (b"text/html; charset=utf-8", page(document).encode()),
            }
        content_type, body = self._made[scope["path"]]
        policy = (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")
        await respond(send, 200, content_type, body, [policy])


class _Schemas:
    """The JSON schemas of all inputs and outputs, with shared parts by reference."""

    def __init__(self, routes: Sequence[Route]) -> None:
        wanted: list[tuple[tuple[int, str], JsonSchemaMode, TypeAdapter[Any]]] = []
        for number, route in enumerate(routes):
            if (kind := input_type(route)) is not None:
                wanted.append(
                    ((number, "input"), "validation", adapter(kind, ignore_unknown=route.codec.ignores_unknown))
                )
            returned = route.operation.signature.returns
            if returned is not type(None) and not sends_itself(returned):
                wanted.append(((number, "output"), "serialization", TypeAdapter(returned)))
        self._found, document = TypeAdapter.json_schemas(wanted, ref_template=_REFERENCE)
        self.definitions = cast("dict[str, Any]", document.get("$defs", {}))
        for found in [*self._found.values(), *self.definitions.values()]:
            _say_what_is_accepted(found)

    def get(self, number: int, what: str, mode: JsonSchemaMode) -> dict[str, Any] | None:
        """Return the schema of a route's input or output."""
        return self._found.get(((number, what), mode))

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return what a schema refers to, or itself."""
        reference = schema.get("$ref")
        return self.definitions[reference.rpartition("/")[2]] if reference else schema


def _operation(route: Route, number: int, schemas: _Schemas) -> dict[str, Any]:
    summary, _, description = route.operation.description.partition("\n")
    problem: dict[str, Any] = {"application/problem+json": {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    if route.codec.error_schema is not None:
        problem["application/json"] = {"schema": route.codec.error_schema}
    described: dict[str, Any] = {
        "operationId": route.operation.id,
        "summary": summary,
        "description": description.strip(),
        "responses": {
            str(route.status): {"description": "Done"},
            **{status: {"description": why, "content": problem} for status, why in _refusals(route).items()},
            "default": {"description": "Refused", "content": problem},
        },
    }
    returned, output = route.operation.signature.returns, schemas.get(number, "output", "serialization")
    if sends_itself(returned):
        described["responses"][str(route.status)]["content"] = {returned.documented_as: {"schema": {"type": "string"}}}
    elif output is None:
        described["responses"]["204"] = described["responses"].pop(str(route.status))
    else:
        described["responses"][str(route.status)]["content"] = {"application/json": {"schema": output}}
    described["security"] = _security(route)
    if route.permission:
        described["description"] += f"\n\nNeeds the permission `{route.permission}`."
    if (schema := schemas.get(number, "input", "validation")) is not None:
        if schema.get("type") == "array":
            described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        else:
            _take_input(described, route, schemas.resolved(schema))
    return described


def _security(route: Route) -> list[dict[str, list[str]]]:
    takes = route.operation.signature.takes
    if not route.public:
        return [{route.authenticator.name: []}]
    if takes(BearerToken):
        return [{Bearer.name: []}]
    return [{"basic": []}, {}] if takes(BasicAuth) else []


def _refusals(route: Route) -> dict[str, str]:
    """Return the statuses of refusals and why: those of HTTP itself, and those of the operation."""
    edge = {400, 504}
    if path_parameters(route.path):
        edge.add(404)
    if has_body(route, input_type(route)):
        edge |= {408, 413, 415}
    why: defaultdict[int, set[str]] = defaultdict(set)
    for status in edge:
        why[status].add(title_of(status))
    for kind in refusals(route):
        why[route.codec.status_of(kind)].add(f"{kind.title}: `{kind.code}`")
    return {str(status): "; ".join(sorted(reasons)) for status, reasons in sorted(why.items())}


def _take_input(described: dict[str, Any], route: Route, schema: dict[str, Any]) -> None:
    properties, required = schema["properties"], schema.get("required", [])
    in_path = [name for name in path_parameters(route.path) if name in properties]
    rest = {name: property_ for name, property_ in properties.items() if name not in in_path}
    described["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": _as_segment(properties[name])} for name in in_path
    ]
    if rest and route.method == "GET":
        described["parameters"] += [
            {"name": name, "in": "query", "required": name in required, "schema": _as_text(property_)}
            for name, property_ in rest.items()
        ]
    elif rest:
        body = {
            "type": "object",
            "properties": rest,
            "required": [name for name in required if name in rest],
            "additionalProperties": False,
        }
        if route.codec.ignores_unknown:
            body["additionalProperties"] = {"type": "string", "pattern": _NO_NUL}
        if isinstance(route.codec, Form):
            body["properties"] = {name: _as_text(property_) for name, property_ in rest.items()}
        described["requestBody"] = {"required": True, "content": {route.codec.media_type: {"schema": body}}}


def _as_segment(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of what is a segment of a path."""
    return {**schema, "pattern": _SEGMENT} if schema.get("pattern") == _NO_NUL else schema


def _as_text(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of what is sent as text, in a query or a form: there is no null in these, but absence."""
    choices = [choice for choice in schema.get("anyOf", []) if choice.get("type") != "null"]
    if not choices:
        return schema
    rest = {key: value for key, value in schema.items() if key not in {"anyOf", "default"}}
    return {**choices[0], **rest} if len(choices) == 1 else {**rest, "anyOf": choices}


def _say_what_is_accepted(schema: Any) -> None:
    """Add to a schema, in place, what is refused before a type is looked at."""
    if isinstance(schema, list):
        for part in cast("list[Any]", schema):
            _say_what_is_accepted(part)
        return
    if not isinstance(schema, dict):
        return
    found = cast("dict[str, Any]", schema)
    if found.get("type") == "string" and not found.keys() & {"pattern", "enum", "const"}:
        if found.get("format") == "date-time":
            found["pattern"] = TIME
        elif "format" not in found:
            found["pattern"] = _NO_NUL
    for key, value in found.items():
        if key not in {"default", "enum", "const", "examples"}:
            _say_what_is_accepted(value)


def page(document: dict[str, Any]) -> str:
    """Return the document as a page of HTML, without scripts or anything from elsewhere."""
    rows: list[str] = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            shown = {key: operation[key] for key in ("parameters", "requestBody", "responses") if key in operation}
            details = json.dumps(shown, indent=2)
            rows.append(
                f"<details><summary><b>{method.upper()}</b> <code>{html.escape(path)}</code>"
                f" {html.escape(operation['summary'])}</summary>"
                f"<p>{html.escape(operation['description'])}</p><pre>{html.escape(details)}</pre></details>"
            )
    title = html.escape(document["info"]["title"])
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;"
        "background:#fff}summary{cursor:pointer;padding:.3rem 0}summary b{display:inline-block;width:4.5rem}"
        "pre{background:#f4f4f4;padding:1rem;overflow:auto}p{white-space:pre-wrap}"
        "@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}pre{background:#222}}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{style}</style><h1>{title}</h1>"
        f'<p>The same as <a href="/openapi.json">OpenAPI 3.1</a>, for machines.</p>{"".join(rows)}</html>'
    )
