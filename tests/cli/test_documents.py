"""The documents of the CLI have the keys and types of the API's schemas."""

from __future__ import annotations

import typing
from datetime import datetime
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel

from agent.api import exec_schemas, operator_schemas, problem_schemas, schemas, usage_schemas
from agent.cli import documents, usage_documents

PAIRS: list[tuple[Any, type[BaseModel]]] = [
    (documents.HostDocument, schemas.HostDocument),
    (documents.ModeDocument, schemas.ModeDocument),
    (documents.VmList, schemas.VmList),
    (documents.VmDetail, schemas.VmDetail),
    (documents.ImageList, schemas.ImageList),
    (documents.LeaseDocument, schemas.LeaseDocument),
    (documents.EventPage, schemas.EventPage),
    (documents.RolloutList, operator_schemas.RolloutList),
    (documents.PoolRollout, operator_schemas.PoolRollout),
    (documents.EvidenceList, operator_schemas.EvidenceList),
    (usage_documents.UsageDocument, usage_schemas.UsageDocument),
    (documents.Problem, problem_schemas.Problem),
    (documents.ExecStarted, exec_schemas.ExecStarted),
    (documents.ExecExit, exec_schemas.ExecExit),
    (documents.ExecFailed, exec_schemas.ExecFailed),
]


def json_shape(annotation: Any) -> Any:  # noqa: PLR0911 - one for each kind of type
    """Return the shape of a value in JSON, equal for a schema and its TypedDict."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return json_shape(arguments[0])
    if origin is NotRequired:
        return ("or null", json_shape(arguments[0]))
    if origin in (Union, UnionType):
        assert NoneType in arguments
        return ("or null", *(json_shape(item) for item in arguments if item is not NoneType))
    if origin in (tuple, list):
        return ("list", json_shape(arguments[0]))
    if origin is dict:
        return ("map", json_shape(arguments[1]))
    if origin is Literal or annotation in (str, datetime):
        return "string"
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or typing.is_typeddict(annotation)):
        hints = get_type_hints(annotation, include_extras=True)
        keys = annotation.model_fields if issubclass(annotation, BaseModel) else hints
        return {key: json_shape(hints[key]) for key in keys}
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "string"
    assert annotation in (int, float, bool)
    return annotation


@pytest.mark.parametrize(("document", "schema"), PAIRS)
def test_document_equals_its_schema(document: Any, schema: type[BaseModel]) -> None:
    assert json_shape(document) == json_shape(schema)


def test_streamed_event_requires_the_keys_without_default() -> None:
    fields = schemas.EventDocument.model_fields
    required = {name for name, field in fields.items() if field.is_required()}
    assert documents.StreamedEvent.__required_keys__ == required
    assert documents.StreamedEvent.__optional_keys__ == set(fields) - required
