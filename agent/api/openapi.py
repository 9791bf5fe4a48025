"""The OpenAPI 3.1 document, generated from the table of operations and their schemas. Pure."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from agent import __version__
from agent.api.auth import Role
from agent.api.problem_schemas import Problem
from agent.api.problems import MEDIA_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.api.operation import Operation

_REF: Final = "#/components/schemas/{model}"
_BODY_ERRORS: Final = (400, 408, 413, 415, 422)
_TOKEN: Final = "token"
_TOKEN_SCHEME: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "Of `hearth token create`; an operation's `x-role` is the least role it takes. `api.auth` says what "
    "can be done without one over TCP. The Unix socket asks for none.",
}
_DESCRIPTION: Final = (
    "What the controller asks and the operator sees. Every error is an RFC 9457 problem with a stable `code` and a "
    "`remedy`. Every answer carries `X-Request-ID`, which is also in the agent's log."
)

_Mode = Literal["validation", "serialization"]
_Schemas = dict[tuple[type[BaseModel], _Mode], dict[str, Any]]


def openapi(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the document for these operations."""
    table = tuple(operations)
    used = {(Problem, "serialization"): None} | {key: None for item in table for key in _models(item)}
    schemas, definitions = models_json_schema(list(used), ref_template=_REF)  # type: ignore[arg-type]
    for schema in definitions["$defs"].values():
        _close_patterns(schema)
    paths: dict[str, dict[str, Any]] = {}
    for item in table:
        paths.setdefault(item.path, {})[item.method.lower()] = _operation(item, schemas)  # type: ignore[arg-type]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Hearth", "version": __version__, "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": definitions["$defs"], "securitySchemes": {_TOKEN: _TOKEN_SCHEME}},
    }


def _close_patterns(schema: dict[str, Any]) -> None:
    """Forbid additional keys in objects with a key pattern: the validation forbids them too."""
    for inner in schema.get("properties", {}).values():
        if "patternProperties" in inner:
            inner["additionalProperties"] = False


def _models(item: Operation) -> Iterable[tuple[type[BaseModel], str]]:
    if isinstance(item.answer, type):
        yield item.answer, "serialization"
    if item.body is not None:
        yield item.body, "validation"
    yield from ((model, "validation") for model in item.receives)
    yield from ((model, "serialization") for model in item.sends)


def _operation(item: Operation, schemas: _Schemas) -> dict[str, Any]:
    result: dict[str, Any] = {
        "operationId": item.id,
        "summary": item.summary,
        "description": (item.handler.__doc__ or "").strip(),
        "x-role": item.needs.name.lower(),
        "security": [] if item.needs is Role.NONE else [{_TOKEN: []}],
        "parameters": [*_path_parameters(item), *_query_parameters(item), *_header_parameters(item)],
        "responses": _responses(item, schemas),
    }
    if item.body is not None:
        body = schemas[item.body, "validation"]
        result["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if item.receives:
        result["x-websocket"] = {
            "client": [schemas[model, "validation"] for model in item.receives],
            "agent": [schemas[model, "serialization"] for model in item.sends],
        }
    return result


def _path_parameters(item: Operation) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", item.path):
        yield _parameter(name, "path", {"type": "string", "minLength": 1}, required=True)


def _query_parameters(item: Operation) -> Iterable[dict[str, Any]]:
    if item.query is not None:
        for name, schema in item.query.model_json_schema()["properties"].items():
            yield _parameter(name, "query", schema)


def _header_parameters(item: Operation) -> Iterable[dict[str, Any]]:
    if item.etag:
        name = "If-None-Match" if item.method == "GET" else "If-Match"
        yield _parameter(name, "header", {"type": "string"})


def _parameter(name: str, where: str, schema: Mapping[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": where, "required": required, "schema": schema}


def _responses(item: Operation, schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {str(status): _answer(item, status, schemas) for status in (item.status, *item.also)}
    if item.etag and item.method == "GET":
        responses["304"] = {"description": "The client has it already"}
    for status in sorted({*item.errors, *(_BODY_ERRORS if item.body else ())}):
        responses[str(status)] = _problem(HTTPStatus(status).phrase)
    responses["default"] = _problem("Any other error")
    return responses


def _answer(item: Operation, status: int, schemas: _Schemas) -> dict[str, Any]:
    response: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if isinstance(item.answer, str):
        response["content"] = {item.answer: {"schema": {"type": "string"}}}
    elif item.answer is not None:
        response["content"] = {"application/json": {"schema": schemas[item.answer, "serialization"]}}
        if item.stream:
            response["content"][item.stream] = {"schema": {"type": "string"}}
    if item.etag:
        response["headers"] = {"ETag": {"schema": {"type": "string"}}}
    return response


def _problem(description: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model="Problem")}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schema}}}
