"""OpenAPI 3.1 of the declared actions."""

import inspect
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from app.kernel.actions.operation import ActionOperation
from app.kernel.callers import BasicAuth, BearerToken
from app.kernel.decoding import TIME, adapter
from app.kernel.errors import Invalid, Refusal
from app.kernel.http.authenticators import Bearer
from app.kernel.http.codecs import Codec, Form
from app.kernel.http.examples import Examples
from app.kernel.http.problems import HttpProblem, code_and_title
from app.kernel.http.routes import has_body, input_type, needs_body, path_parameters, refusals, sends_itself
from app.kernel.product import VERSION

Refused = Callable[[], Refusal | HttpProblem]
_NO_NUL = "^[^\\u0000]*$"
_SEGMENT = "^[^/\\u0000]*$"
_SCHEMA = "#/components/schemas/{model}"
_IDS = {"request_id": "01a20304-51b9-712d-b52c-fd40df0b43e3", "trace_id": "0af7651916cd43dd8448eb211c80319c"}
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
    """Return the OpenAPI document of some actions. `x-permission` and `x-command` are of this product."""
    schemas = _Schemas(operations)
    schemes = {Bearer.name: Bearer.scheme, "basic": _BASIC}
    paths: dict[str, dict[str, Any]] = {}
    problems: dict[str, Any] = {}
    for number, operation in enumerate(operations):
        action = operation.action
        schemes[action.authenticator.name] = action.authenticator.scheme
        paths.setdefault(action.path, {})[action.method.lower()] = _described(operation, number, schemas, problems)
    about = {tag_of(operation): inspect.getdoc(operation.feature) or "" for operation in operations}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": VERSION},
        "servers": [{"url": "/", "description": "The server of this document"}],
        "tags": [{"name": name, "description": text} for name, text in about.items()],
        "paths": paths,
        "components": {
            "schemas": {**schemas.definitions, "Problem": _PROBLEM},
            "securitySchemes": schemes,
            "examples": dict(sorted(problems.items())),
        },
    }


def tag_of(operation: ActionOperation) -> str:
    """Return the module and the feature of an action, such as `platform: Dead letters`."""
    first, *others = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", operation.feature.__name__).replace("Api ", "API ").split(" ")
    return f"{operation.id.partition('.')[0]}: {' '.join([first, *map(str.lower, others)])}"


def needs(permission: str) -> str:
    """Return the sentence about the permission that ends the description of an action."""
    return f"Needs the permission `{permission}`."


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
        self._found, document = TypeAdapter.json_schemas(wanted, ref_template=_SCHEMA)
        self.definitions = cast("dict[str, Any]", document.get("$defs", {}))
        known = [*self._found.values(), *self.definitions.values()]
        for found in known:
            _add_patterns(found)
        self.examples = Examples(known, self.definitions)

    def get(self, number: int, what: str, mode: JsonSchemaMode) -> dict[str, Any] | None:
        """Return the schema of an operation's input or output."""
        return self._found.get(((number, what), mode))

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return the target of a reference, or the schema itself."""
        reference = schema.get("$ref")
        return self.definitions[reference.rpartition("/")[2]] if reference else schema


def _described(operation: ActionOperation, number: int, schemas: _Schemas, problems: dict[str, Any]) -> dict[str, Any]:
    """Return an operation; add the examples of its refusals to `problems`."""
    action, returned = operation.action, operation.signature.returns
    summary, _, description = operation.description.partition("\n")
    if action.permission:
        description += f"\n\n{needs(action.permission)}"
    output = schemas.get(number, "output", "serialization")
    done: dict[str, Any] = {"description": "Success"}
    if sends_itself(returned):
        done["content"] = {returned.documented_as: {"schema": {"type": "string"}}}
    elif output is not None:
        done["content"] = {"application/json": {"schema": output, "example": schemas.examples.of(output)}}
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [tag_of(operation)],
        "summary": summary,
        "description": description.strip(),
        "security": _security(operation),
        **({"x-permission": action.permission} if action.permission else {}),
        **({"x-command": action.command} if action.command else {}),
        "responses": {
            "204" if returned is type(None) else str(action.status): done,
            **_refusals(operation, problems),
            "default": {"description": "Error", "content": _refused(action.codec)},
        },
    }
    if (schema := schemas.get(number, "input", "validation")) is not None:
        if schema.get("type") == "array":
            body = {"schema": schema, "example": schemas.examples.of(schema)}
            described["requestBody"] = {"required": True, "content": {"application/json": body}}
        else:
            described |= _input(operation, schemas.resolved(schema), schemas.examples)
    return described


def _security(operation: ActionOperation) -> list[dict[str, list[str]]]:
    takes = operation.signature.takes
    if not operation.action.public:
        return [{operation.action.authenticator.name: []}]
    if takes(BearerToken):
        return [{Bearer.name: []}]
    return [{"basic": []}, {}] if takes(BasicAuth) else []


def _refusals(operation: ActionOperation, problems: dict[str, Any]) -> dict[str, Any]:
    """Return the responses of refusals: those of HTTP, and those of the operation."""
    codec, edge = operation.action.codec, {400, 504}
    if path_parameters(operation.action.path):
        edge.add(404)
    if has_body(operation):
        edge |= {408, 413, 415}
    found: defaultdict[int, dict[str, tuple[str, Refused]]] = defaultdict(dict)
    for status in edge:
        code, title = code_and_title(status)
        found[status][code] = title, partial(HttpProblem, status)
    for kind in refusals(operation):
        found[codec.status_of(kind)][kind.code] = kind.title, kind
    responses: dict[str, Any] = {}
    for status, codes in sorted(found.items()):
        schemas, content = _refused(codec), dict[str, Any]()
        for code, (title, refused) in sorted(codes.items()):
            response = codec.refuse(refused()) if codec.error_schema is not None else None
            if response is None:
                problems.setdefault(code, {"summary": title, "value": _problem(status, code, title)})
                media_type, shown = "application/problem+json", {"$ref": f"#/components/examples/{code}"}
            else:
                media_type, shown = (
                    response.content_type.decode(),
                    {"summary": title, "value": json.loads(response.body)},
                )
            content.setdefault(media_type, {**schemas[media_type], "examples": {}})["examples"][code] = shown
        why = sorted(f"{title}: `{code}`" for code, (title, _) in codes.items())
        responses[str(status)] = {"description": "; ".join(why), "content": content}
    return responses


def _refused(codec: Codec) -> dict[str, Any]:
    """Return the content of refusals."""
    content: dict[str, Any] = {"application/problem+json": {"schema": {"$ref": _SCHEMA.format(model="Problem")}}}
    return content if codec.error_schema is None else {**content, "application/json": {"schema": codec.error_schema}}


def _problem(status: int, code: str, title: str) -> dict[str, Any]:
    """Return an example of problem details."""
    made = {"type": "about:blank", "title": title, "status": status, "detail": title, "code": code}
    errors = [{"field": "limit", "message": "must be at most 100"}] if code == Invalid.code else []
    return {**made, **_IDS, **({"errors": errors} if errors else {})}


def _input(operation: ActionOperation, schema: dict[str, Any], examples: Examples) -> dict[str, Any]:
    """Return the parameters and the request body of an input."""
    action, properties, required = operation.action, schema["properties"], schema.get("required", [])
    in_path = [name for name in path_parameters(action.path) if name in properties]
    rest = {name: property_ for name, property_ in properties.items() if name not in in_path}
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _as_segment(properties[name]),
            "example": examples.of(properties[name], name),
        }
        for name in in_path
    ]
    if not rest:
        return {"parameters": parameters}
    if action.method == "GET":
        parameters += [
            {
                "name": name,
                "in": "query",
                "required": name in required,
                "schema": _as_text(property_),
                "example": examples.of(_as_text(property_), name),
            }
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
    content = {action.codec.media_type: {"schema": body, "example": examples.of(body)}}
    return {"parameters": parameters, "requestBody": {"required": needs_body(operation), "content": content}}


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
