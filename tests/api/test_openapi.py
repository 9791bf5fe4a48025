"""The contract served at /openapi.json is the one the router keeps."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from agent.api.application import OPERATIONS
from agent.api.openapi import openapi

if TYPE_CHECKING:
    from tests.api.conftest import Running


def references(node: object) -> set[str]:
    return set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(node)))


async def test_the_document_is_served_and_lists_every_operation(api: Running) -> None:
    async with api.tcp.get("/openapi.json") as response:
        document = await response.json()
    assert document["openapi"] == "3.1.0"
    listed = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert listed == {(operation.method, operation.path) for operation in OPERATIONS}


def test_every_reference_leads_somewhere_and_nothing_is_left_over() -> None:
    document = openapi(OPERATIONS)
    assert references(document) == set(document["components"]["schemas"])


def test_every_operation_is_told_in_words_and_has_its_own_name() -> None:
    operations = [entry for item in openapi(OPERATIONS)["paths"].values() for entry in item.values()]
    assert len({entry["operationId"] for entry in operations}) == len(OPERATIONS)
    for entry in operations:
        assert entry["summary"]
        assert entry["description"]
        assert "default" in entry["responses"]
