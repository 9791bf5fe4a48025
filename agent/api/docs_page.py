"""The reference page: the OpenAPI document as plain HTML, without scripts and external resources. Pure."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Json = Mapping[str, Any]

STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h2 { border-bottom: 1px solid #8886; margin-top: 2.5rem; }
h3 { margin: 2rem 0 .25rem; scroll-margin-top: 1rem; }
code { font-size: .93em; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-top: 1px solid #8883; }
nav ul { columns: 2 22rem; list-style: none; padding: 0; }
.verb { display: inline-block; min-width: 4.2rem; font-weight: 600; }
.soft { color: #777; }
"""


def reference(document: Json) -> str:
    """Return the page of an OpenAPI document from `agent.api.openapi`."""
    operations = [(path, verb, item) for path, verbs in document["paths"].items() for verb, item in verbs.items()]
    schemas = document["components"]["schemas"]
    info = document["info"]
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])} API</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} API <span class=soft>{escape(info['version'])}</span></h1>",
            f"<p>{_prose(info['description'])} For machines: <a href=openapi.json>/openapi.json</a>.</p>",
            "<nav aria-label=Calls><ul>",
            *(f"<li><a href=#{item['operationId']}>{_call(verb, path)}</a></li>" for path, verb, item in operations),
            "</ul></nav><main><h2>Calls</h2>",
            *(_operation(path, verb, item) for path, verb, item in operations),
            "<h2>Documents</h2>",
            *(_schema(name, schemas[name]) for name in sorted(schemas)),
            "</main></body></html>",
        )
    )


def _operation(path: str, verb: str, item: Json) -> str:
    parts = [
        f"<section><h3 id={item['operationId']}>{_call(verb, path)}</h3>",
        f"<p>{_prose(item['summary'])}. {_prose(item['description'])} {_role(item['x-role'])}</p>",
    ]
    parameters = [(one["name"], f"{one['in']}, {_type(one['schema'])}", _about(one)) for one in item["parameters"]]
    parts += [_table(("parameter", "where and what", ""), parameters)] if parameters else []
    if "requestBody" in item:
        parts.append(f"<p>Takes {_contents(item['requestBody'])}.</p>")
    if messages := item.get("x-websocket"):
        for side in ("client", "agent"):
            parts.append(f"<p>The {side} sends {', '.join(map(_type, messages[side]))}.</p>")
    answers = [
        (status, escape(answer["description"]), _contents(answer)) for status, answer in item["responses"].items()
    ]
    return "".join((*parts, _table(("answer", "", "with"), answers), "</section>"))


def _schema(name: str, schema: Json) -> str:
    required = set(schema.get("required", ()))
    fields = [
        (field, _type(inner) + ("" if field in required else " <span class=soft>optional</span>"), _about(inner))
        for field, inner in schema.get("properties", {}).items()
    ]
    what = _table(("field", "what", ""), fields) if fields else f"<p>{_type(schema)}</p>"
    about = _prose(schema.get("description", ""))
    return f"<section><h3 id={escape(name)}>{escape(name)}</h3><p>{about}</p>{what}</section>"


def _type(schema: Json) -> str:
    """Return the type of a value as text, with links to its documents."""
    if "$ref" in schema:
        name = escape(str(schema["$ref"]).rpartition("/")[2])
        return f"<a href=#{name}>{name}</a>"
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in values)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(map(_type, schema[several]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items') or schema.get('prefixItems', [{}])[0])}"
    if isinstance(inner := schema.get("additionalProperties"), dict):
        return f"object of {_type(inner)}"
    kind = str(schema.get("format") or schema.get("type") or "any value")
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS if key in schema]
    return escape(" ".join([kind, *bounds]))


_BOUNDS: Final = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def _contents(holder: Json) -> str:
    """Return the media types and documents of a body."""
    return "; ".join(
        f"{_type(content['schema'])} <span class=soft>{escape(media_type)}</span>"
        for media_type, content in holder.get("content", {}).items()
    )


def _about(schema: Json) -> str:
    default = schema.get("schema", schema).get("default")
    default_text = f"default <code>{escape(str(default))}</code>" if default not in (None, "", [], {}) else ""
    return " ".join(part for part in (_prose(schema.get("description", "")), default_text) if part)


def _role(role: str) -> str:
    return "Needs no token." if role == "none" else f"Needs the role <b>{role}</b>."


def _call(verb: str, path: str) -> str:
    return f"<span class=verb>{verb.upper()}</span> <code>{escape(path)}</code>"


def _prose(text: str) -> str:
    """Return text with its parts in backticks as code."""
    pieces = escape(" ".join(text.split())).split("`")
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    head = "".join(f"<th scope=col>{text}</th>" for text in heads)
    body = ""
    for first, *others in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in others)
        body += f"<tr><td><code>{escape(first)}</code></td>{cells}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
