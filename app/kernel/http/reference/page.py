"""The OpenAPI document as a page, which needs no script except to search, and to copy commands."""

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from markupsafe import Markup, escape

from app.kernel.http.openapi import needs
from app.kernel.product import NAME

Schema = dict[str, Any]
_EMPTY = Markup()
_LEVELS = 4
_BOUNDS = (("minLength", "maxLength", " characters"), ("minimum", "maximum", ""), ("minItems", "maxItems", " items"))
_STRICT = (("exclusiveMinimum", "more than {}"), ("exclusiveMaximum", "less than {}"))


class _Operation(NamedTuple):
    """An operation of the document."""

    method: str
    path: str
    about: Schema

    @property
    def anchor(self) -> str:
        return self.about["operationId"].replace("_", "-").replace(".", "-")

    @property
    def body(self) -> tuple[str, Schema] | None:
        """The media type of the request body, and its schema and example."""
        return next(iter(self.about.get("requestBody", {}).get("content", {}).items()), None)


def page(document: Schema, style: str, script: str) -> str:
    """Return the page of a document; `style` and `script` are the paths of its assets."""
    title = document["info"]["title"]
    groups: dict[str, dict[str, list[_Operation]]] = defaultdict(dict)
    for path, methods in document["paths"].items():
        for method, about in methods.items():
            module, _, feature = about["tags"][0].partition(": ")
            groups[module].setdefault(feature, []).append(_Operation(method.upper(), path, about))
    texts = {tag["name"]: tag["description"] for tag in document["tags"]}
    made = Markup("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: reference</title>
<link rel="stylesheet" href="{style}">
<script src="{script}" defer></script>
</head>
<body>
<a class="skip" href="#main">Skip to the operations</a>
<header>
<p class="title"><a href="#top">{title}</a> <span class="muted">{version}</span></p>
<form id="find" role="search" hidden>
<label for="query">Search</label>
<input id="query" type="search" autocomplete="off" spellcheck="false" placeholder="path, field, code or permission">
<output id="found" for="query"></output>
</form>
<p class="links"><a href="/openapi.json">OpenAPI 3.1</a></p>
</header>
<div class="columns">
<nav aria-label="Operations">{navigation}</nav>
<main id="main" tabindex="-1">
<h1 id="top">{title}</h1>
{introduction}
<p id="nothing" hidden>No operation has all of these words.</p>
{content}
</main>
</div>
</body>
</html>
""").format(
        title=title,
        version=document["info"]["version"],
        style=style,
        script=script,
        navigation=_navigation(groups),
        introduction=_introduction(document),
        content=_joined(
            _feature(module, feature, texts[f"{module}: {feature}"], found, document["components"])
            for module, features in groups.items()
            for feature, found in features.items()
        ),
    )
    return str(made)


def _navigation(groups: dict[str, dict[str, list[_Operation]]]) -> Markup:
    return _joined(
        Markup("<h2>{}</h2><ul>{}</ul>").format(
            module,
            _joined(
                Markup('<li><a href="#{}">{}</a></li>').format(_anchor(module, feature), feature)
                for feature in features
            ),
        )
        for module, features in groups.items()
    )


def _introduction(document: Schema) -> Markup:
    schemes = _joined(
        Markup("<tr><th scope=row>{}</th><td>{}</td></tr>").format(name, _scheme(scheme))
        for name, scheme in document["components"]["securitySchemes"].items()
    )
    codes = _joined(
        Markup("<tr><td>{}</td><th scope=row><code>{}</code></th><td>{}</td></tr>").format(
            found["value"]["status"], code, found["summary"]
        )
        for code, found in sorted(
            document["components"]["examples"].items(), key=lambda item: (item[1]["value"]["status"], item[0])
        )
    )
    return Markup("""<p>
Examples are commands for a shell that has the address of the API, and an access token or API key:</p>
<pre><code>export URL=http://127.0.0.1:8080
export TOKEN=...</code></pre>
<details class="part"><summary>Authentication</summary><table>{}</table></details>
<details class="part"><summary>Refusals and their codes</summary>
<p>A refusal is <code>application/problem+json</code> (RFC 9457). Programs decide by <code>code</code>; reports name
<code>request_id</code>. Every operation lists its own codes.</p>
<table><thead><tr><th scope=col>status</th><th scope=col>code</th><th scope=col>meaning</th></tr></thead>
<tbody>{}</tbody></table></details>
""").format(schemes, codes)


def _scheme(scheme: Schema) -> str:
    kind = {"bearer": "Authorization: Bearer TOKEN", "basic": "Authorization: Basic, with client id and secret"}
    shown = kind.get(scheme.get("scheme", "")) or f"{scheme.get('in', '')} {scheme.get('name', '')}".strip()
    return ". ".join(filter(None, (shown, scheme.get("description", ""))))


def _feature(module: str, feature: str, text: str, found: list[_Operation], components: Schema) -> Markup:
    return Markup(
        '<section class="feature" aria-labelledby="{anchor}"><h2 id="{anchor}">{feature}'
        ' <span class="muted">{module}</span></h2>{text}{operations}</section>\n'
    ).format(
        anchor=_anchor(module, feature),
        feature=feature,
        module=module,
        text=_text(text),
        operations=_joined(_operation(each, components) for each in found),
    )


def _operation(op: _Operation, components: Schema) -> Markup:
    schemas = components["schemas"]
    permission = op.about.get("x-permission", "")
    description = op.about["description"].removesuffix(needs(permission)).strip()
    return Markup("""<details class="operation" id="{anchor}">
<summary><span class="method {lower}">{method}</span> <code class="path">{path}</code>
<span class="what">{summary}</span></summary>
<div class="body">
{description}
<dl>{facts}</dl>
{parameters}
{body}
<h3>Request</h3>
<pre><code>{curl}</code></pre>
{response}
{refusals}
</div>
</details>
""").format(
        anchor=op.anchor,
        lower=op.method.lower(),
        method=op.method,
        path=op.path,
        summary=op.about["summary"],
        description=_text(description),
        facts=_joined(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*fact) for fact in _facts(op, permission)),
        parameters=_parameters(op, schemas),
        body=_body(op, schemas),
        curl=curl(op.method, op.path, op.about),
        response=_response(op, schemas),
        refusals=_refusals(op, components["examples"]),
    )


def _facts(op: _Operation, permission: str) -> Iterator[tuple[str, Markup]]:
    """Yield who may call an operation, and the command that does the same."""
    security = op.about["security"]
    if permission:
        yield "Permission", Markup("<code>{}</code>").format(permission)
    elif not security:
        yield "Access", Markup("Public")
    else:
        names = [next(iter(choice), "nothing") for choice in security]
        yield "Access", escape("Everybody who is signed in" if names == ["bearer"] else f"With {' or '.join(names)}")
    if command := op.about.get("x-command"):
        yield "Command", Markup("<code>{} {} --help</code>").format(NAME, command)


def _parameters(op: _Operation, schemas: Schema) -> Markup:
    rows = [(each["name"], each["in"], each["required"], each["schema"]) for each in op.about.get("parameters", [])]
    shown = _joined(
        _row(name, where, _type(schema, schemas), is_required, schema) for name, where, is_required, schema in rows
    )
    return _table("Parameters", "in", shown)


def _body(op: _Operation, schemas: Schema) -> Markup:
    if op.body is None:
        return _EMPTY
    media_type, found = op.body
    return _table(f"Body: {media_type}", "", _fields(found["schema"], schemas, is_input=True))


def _response(op: _Operation, schemas: Schema) -> Markup:
    status, found = next((status, each) for status, each in op.about["responses"].items() if status[0] == "2")
    heading = f"Response: {status} {HTTPStatus(int(status)).phrase}"
    nothing: tuple[str, Schema] = ("", {})
    media_type, content = next(iter(found.get("content", {}).items()), nothing)
    if "example" not in content:
        return Markup("<h3>{}</h3><p>{}</p>").format(heading, media_type or "It has no body.")
    return Markup("{}<pre><code>{}</code></pre>").format(
        _table(heading, "", _fields(content["schema"], schemas)), _pretty(content["example"])
    )


def _refusals(op: _Operation, known: Schema) -> Markup:
    """Return the table of the codes of an operation; `known` are the examples that it refers to."""
    rows = [
        (status, code, known[code]["summary"] if "$ref" in example else example["summary"])
        for status, found in op.about["responses"].items()
        for content in found.get("content", {}).values()
        for code, example in content.get("examples", {}).items()
    ]
    shown = _joined(
        Markup("<tr><td>{}</td><th scope=row><code>{}</code></th><td>{}</td></tr>").format(*row) for row in rows
    )
    return Markup(
        "<details class=part><summary>Refusals ({})</summary><table><thead><tr><th scope=col>status</th>"
        "<th scope=col>code</th><th scope=col>meaning</th></tr></thead><tbody>{}</tbody></table></details>"
    ).format(len(rows), shown)


def _table(title: str, place: str, rows: Markup) -> Markup:
    if not rows:
        return _EMPTY
    head = Markup("<th scope=col>{}</th>").format(place) if place else _EMPTY
    return Markup(
        "<h3>{}</h3><table><thead><tr><th scope=col>name</th>{}<th scope=col>type</th>"
        "<th scope=col>description</th></tr></thead><tbody>{}</tbody></table>"
    ).format(title, head, rows)


def _fields(schema: Schema, schemas: Schema, prefix: str = "", level: int = 0, *, is_input: bool = False) -> Markup:
    """Return a row for each field of an object or of the items of an array, and for those inside of it."""
    schema = _plain(schema, schemas)
    if schema.get("type") == "array":
        return _fields(schema.get("items", {}), schemas, f"{prefix}[].".replace(".[]", "[]"), level, is_input=is_input)
    rows: list[Markup] = []
    for name, field in schema.get("properties", {}).items():
        is_required = is_input and name in schema.get("required", ())
        rows.append(_row(f"{prefix}{name}", "", _type(field, schemas), is_required, field))
        if level < _LEVELS:
            rows.append(_fields(field, schemas, f"{prefix}{name}.", level + 1, is_input=is_input))
    return _joined(rows)


def _row(name: str, place: str, type_: str, is_required: bool, schema: Schema) -> Markup:
    default = schema.get("default")
    choices: list[Schema] = schema.get("anyOf", [])
    notes = [schema.get("description") or next((text for each in choices if (text := each.get("description"))), "")]
    if default not in (None, ""):
        notes.append(f"Default: {json.dumps(default)}.")
    return Markup("<tr><th scope=row><code>{}</code>{}</th>{}<td>{}</td><td>{}</td></tr>").format(
        name,
        Markup(' <span class="required">required</span>') if is_required else _EMPTY,
        Markup("<td>{}</td>").format(place) if place else _EMPTY,
        type_,
        _inline(" ".join(filter(None, notes))),
    )


def _plain(schema: Schema, schemas: Schema) -> Schema:
    """Return what a reference, or a choice of it and null, stands for."""
    choices = [choice for choice in schema.get("anyOf", []) if choice.get("type") != "null"]
    if len(choices) == 1:
        return _plain(choices[0], schemas)
    reference = schema.get("$ref")
    return schemas[reference.rpartition("/")[2]] if reference else schema


def _type(schema: Schema, schemas: Schema) -> str:
    """Return a type and its bounds in words."""
    if choices := schema.get("anyOf"):
        return " or ".join(_type(choice, schemas) for choice in choices)
    found = _plain(schema, schemas)
    if "enum" in found or "const" in found:
        return " | ".join(json.dumps(each) for each in found.get("enum", [found.get("const")]))
    kind = found.get("type", "anything")
    if kind == "array" and found.get("items"):
        kind = f"array of {_type(found['items'], schemas)}"
    if "format" in found:
        kind = f"{kind} ({found['format']})"
    return ", ".join([kind, *_bounds(found)])


def _bounds(schema: Schema) -> Iterator[str]:
    for least, most, unit in _BOUNDS:
        match schema.get(least), schema.get(most):
            case None | 0, None:
                pass
            case None | 0, at_most:
                yield f"at most {at_most}{unit}"
            case at_least, None:
                yield f"at least {at_least}{unit}"
            case at_least, at_most:
                yield f"{at_least} to {at_most}{unit}"
    yield from (text.format(schema[key]) for key, text in _STRICT if key in schema)


def curl(method: str, path: str, about: Schema) -> str:
    """Return the command that calls an operation with its example."""
    given = about.get("parameters", [])
    for each in given:
        if each["in"] == "path":
            path = path.replace(f"{{{each['name']}}}", quote(str(each["example"]), safe=""))
    query = urlencode([(each["name"], each["example"]) for each in given if each["in"] == "query" and each["required"]])
    lines = [f'curl {"" if method == "GET" else f"-X {method} "}"$URL{path}{f"?{query}" if query else ""}"']
    names = {name for choice in about["security"] for name in choice}
    if "basic" in names:
        lines.append('-u "$CLIENT_ID:$CLIENT_SECRET"')
    elif names:
        lines.append('-H "Authorization: Bearer $TOKEN"')
    for media_type, found in about.get("requestBody", {}).get("content", {}).items():
        if media_type == "application/json":
            lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(_pretty(found['example']))}"]
        else:
            lines += [f"-d {shlex.quote(urlencode([(key, value)]))}" for key, value in found["example"].items()]
    return " \\\n  ".join(lines)


def _anchor(module: str, feature: str) -> str:
    return f"{module}-{feature}-operations".lower().replace(" ", "-")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _text(text: str) -> Markup:
    """Return paragraphs of a docstring."""
    return _joined(Markup("<p>{}</p>").format(_inline(part)) for part in text.split("\n\n") if part)


def _inline(text: str) -> Markup:
    """Return a text with `code` marked up."""
    parts = re.split("`([^`]+)`", text)
    return _joined(Markup("<code>{}</code>").format(part) if at % 2 else escape(part) for at, part in enumerate(parts))


def _joined(parts: Iterable[Markup]) -> Markup:
    return _EMPTY.join(parts)
