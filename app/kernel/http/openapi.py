"""OpenAPI 3.1 of the declared actions, and a page that shows it."""

import html
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from app.kernel.actions.operation import ActionOperation
from app.kernel.callers import BasicAuth, BearerToken
from app.kernel.decoding import TIME, adapter
from app.kernel.http.asgi import App, Receive, Scope, Send, respond
from app.kernel.http.authenticators import Bearer
from app.kernel.http.codecs import Form
from app.kernel.http.problems import check_reads, nothing, title_of
from app.kernel.http.routes import has_body, input_type, path_parameters, refusals, sends_itself
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


def openapi(operations: Sequence[ActionOperation], title: str) -> dict[str, Any]:
    """Return the OpenAPI document of some actions."""
    schemas = _Schemas(operations)
    schemes = {Bearer.name: Bearer.scheme, "basic": _BASIC}
    paths: dict[str, dict[str, Any]] = {}
    for number, operation in enumerate(operations):
        action = operation.action
        schemes[action.authenticator.name] = action.authenticator.scheme
        paths.setdefault(action.path, {})[action.method.lower()] = _described(operation, number, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": VERSION},
        "servers": [{"url": "/", "description": "The server of this document"}],
        "paths": paths,
        "components": {
            "schemas": {**schemas.definitions, "Problem": _PROBLEM},
            "securitySchemes": schemes,
        },
    }


class Documentation:
    """Answer /openapi.json and /docs, made at the first request; pass everything else to the application."""

    def __init__(self, operations: Sequence[ActionOperation], title: str, app: App = nothing) -> None:
        self._app = app
        self._routes = operations
        self._title = title
        self._made: dict[str, tuple[bytes, bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in ("/openapi.json", "/docs"):
            await self._app(scope, receive, send)
            return
        scope["state"]["route"] = scope["path"]
        check_reads(scope)
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
    """The JSON schemas of all inputs and outputs; shared parts are references."""

    def __init__(self, operations: Sequence[ActionOperation]) -> None:
        wanted: list[tuple[tuple[int, str], JsonSchemaMode, TypeAdapter[Any]]] = []
        for number, operation in enumerate(operations):
            if (kind := input_type(operation)) is not None:
                known = adapter(kind, ignore_unknown=operation.action.codec.ignores_unknown)
                wanted.append(((number, "input"), "validation", known))
            returned = operation.signature.returns
            if returned is not type(None) and not sends_itself(returned):
                wanted.append(((number, "output"), "serialization", TypeAdapter(returned)))
        self._found, document = TypeAdapter.json_schemas(wanted, ref_template=_REFERENCE)
        self.definitions = cast("dict[str, Any]", document.get("$defs", {}))
        for found in [*self._found.values(), *self.definitions.values()]:
            _add_patterns(found)

    def get(self, number: int, what: str, mode: JsonSchemaMode) -> dict[str, Any] | None:
        """Return the schema of an operation's input or output."""
        return self._found.get(((number, what), mode))

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return the target of a reference, or the schema itself."""
        reference = schema.get("$ref")
        return self.definitions[reference.rpartition("/")[2]] if reference else schema


def _described(operation: ActionOperation, number: int, schemas: _Schemas) -> dict[str, Any]:
    action, returned = operation.action, operation.signature.returns
    summary, _, description = operation.description.partition("\n")
    if action.permission:
        description += f"\n\nNeeds the permission `{action.permission}`."
    problem: dict[str, Any] = {"application/problem+json": {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    if action.codec.error_schema is not None:
        problem["application/json"] = {"schema": action.codec.error_schema}
    output = schemas.get(number, "output", "serialization")
    done: dict[str, Any] = {"description": "Success"}
    if sends_itself(returned):
        done["content"] = {returned.documented_as: {"schema": {"type": "string"}}}
    elif output is not None:
        done["content"] = {"application/json": {"schema": output}}
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": summary,
        "description": description.strip(),
        "security": _security(operation),
        "responses": {
            "204" if returned is type(None) else str(action.status): done,
            **{status: {"description": why, "content": problem} for status, why in _refusals(operation).items()},
            "default": {"description": "Error", "content": problem},
        },
    }
    if (schema := schemas.get(number, "input", "validation")) is not None:
        if schema.get("type") == "array":
            described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        else:
            described |= _input(operation, schemas.resolved(schema))
    return described


def _security(operation: ActionOperation) -> list[dict[str, list[str]]]:
    takes = operation.signature.takes
    if not operation.action.public:
        return [{operation.action.authenticator.name: []}]
    if takes(BearerToken):
        return [{Bearer.name: []}]
    return [{"basic": []}, {}] if takes(BasicAuth) else []


def _refusals(operation: ActionOperation) -> dict[str, str]:
    """Return the statuses of refusals and their reasons: those of HTTP, and those of the operation."""
    edge = {400, 504}
    if path_parameters(operation.action.path):
        edge.add(404)
    if has_body(operation):
        edge |= {408, 413, 415}
    why: defaultdict[int, set[str]] = defaultdict(set)
    for status in edge:
        why[status].add(title_of(status))
    for kind in refusals(operation):
        why[operation.action.codec.status_of(kind)].add(f"{kind.title}: `{kind.code}`")
    return {str(status): "; ".join(sorted(reasons)) for status, reasons in sorted(why.items())}


def _input(operation: ActionOperation, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters and the request body of an input."""
    action, properties, required = operation.action, schema["properties"], schema.get("required", [])
    in_path = [name for name in path_parameters(action.path) if name in properties]
    rest = {name: property_ for name, property_ in properties.items() if name not in in_path}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _as_segment(properties[name])} for name in in_path
    ]
    if not rest:
        return {"parameters": parameters}
    if action.method == "GET":
        parameters += [
            {"name": name, "in": "query", "required": name in required, "schema": _as_text(property_)}
            for name, property_ in rest.items()
        ]
        return {"parameters": parameters}
    is_form, other = isinstance(action.codec, Form), {"type": "string", "pattern": _NO_NUL}
    body = {
        "type": "object",
        "properties": {name: _as_text(property_) for name, property_ in rest.items()} if is_form else rest,
        "required": [name for name in required if name in rest],
        "additionalProperties": other if action.codec.ignores_unknown else False,
    }
    content = {action.codec.media_type: {"schema": body}}
    return {"parameters": parameters, "requestBody": {"required": True, "content": content}}


def _as_segment(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a path segment."""
    return {**schema, "pattern": _SEGMENT} if schema.get("pattern") == _NO_NUL else schema


def _as_text(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a query or form parameter: these have no null."""
    choices = [choice for choice in schema.get("anyOf", []) if choice.get("type") != "null"]
    if not choices:
        return schema
    rest = {key: value for key, value in schema.items() if key not in {"anyOf", "default"}}
    return {**choices[0], **rest} if len(choices) == 1 else {**rest, "anyOf": choices}


def _add_patterns(schema: Any) -> None:
    """Add, in place, the patterns that strings are checked against before their type."""
    if isinstance(schema, list):
        for part in cast("list[Any]", schema):
            _add_patterns(part)
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
            _add_patterns(value)


def page(document: dict[str, Any]) -> str:
    """Return the document as a self-contained HTML page without scripts."""
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
