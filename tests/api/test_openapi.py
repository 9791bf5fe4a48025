"""The OpenAPI document matches the router, and the docs page shows all of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from agent.api.application import OPERATIONS
from agent.api.openapi import openapi
from tests.api.chromium import chromium

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Running


def references(node: object) -> set[str]:
    return set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(node)))


async def test_openapi_lists_every_operation(api: Running) -> None:
    async with api.tcp.get("/openapi.json") as response:
        document = await response.json()
    assert document["openapi"] == "3.1.0"
    listed = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert listed == {(operation.method, operation.path) for operation in OPERATIONS}
    open_to_all = {path for path, item in document["paths"].items() for entry in item.values() if not entry["security"]}
    assert {"/livez", "/readyz"} <= open_to_all
    assert not any(path.startswith("/v1/") for path in open_to_all)


class Tags(HTMLParser):
    """The ids, link targets and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names.add(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links |= {given["href"] or ""} if "href" in given else set()


async def test_docs_page_shows_all_calls_and_loads_nothing(api: Running) -> None:
    async with api.tcp.get("/docs") as response:
        assert response.status == 200
        policy, text = response.headers["Content-Security-Policy"], await response.text()
    page, document = Tags(text), openapi(OPERATIONS)
    expected = {operation.id for operation in OPERATIONS} | set(document["components"]["schemas"])
    assert set(page.ids) == expected
    assert len(page.ids) == len(expected), "the ids are unique"
    assert page.links <= {f"#{place}" for place in page.ids} | {"openapi.json"}
    assert page.names.isdisjoint({"script", "link", "img", "iframe"})
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    for operation in OPERATIONS:
        assert operation.path in text


async def test_docs_page_is_rendered_by_a_browser(api: Running, tmp_path: Path) -> None:
    async with chromium(tmp_path / "profile") as page:
        await page.call("Page.navigate", url=f"http://127.0.0.1:{api.server.port}/docs")
        await page.wait_for("document.querySelector('#ExecStart')")
        assert await page.evaluate("getComputedStyle(document.body).maxWidth") != "none", "the style sheet is applied"
        assert [problem for problem in page.problems if "favicon" not in problem] == []


def test_schemas_are_exactly_those_referenced() -> None:
    document = openapi(OPERATIONS)
    assert references(document) == set(document["components"]["schemas"])


def test_operations_have_descriptions_and_unique_ids() -> None:
    operations = [entry for item in openapi(OPERATIONS)["paths"].values() for entry in item.values()]
    assert len({entry["operationId"] for entry in operations}) == len(OPERATIONS)
    for entry in operations:
        assert entry["summary"]
        assert entry["description"]
        assert "default" in entry["responses"]
