"""Answers of an Anka Registry that are malformed, huge or redirect: each is read in bounds or a named error."""

from __future__ import annotations

import json
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from agent.anka.command import AnkaReply, AnkaReplyError
from agent.config import AnkaConfig
from agent.images.anka.login import Login
from agent.images.anka.pull import AnkaPuller
from agent.images.anka.registry import AnkaRegistry
from agent.images.anka.version import DownloadSize, TemplateName, Version
from agent.images.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAME = TemplateName("macos")


@asynccontextmanager
async def answering(shown: str | web.Response) -> AsyncIterator[AnkaRegistry]:
    """Run a Registry with one template, which answers `shown` to the query for its versions."""

    async def answer(request: web.Request) -> web.Response:
        if "id" not in request.query:
            return web.json_response({"status": "OK", "body": [{"id": "1", "name": "macos"}]})
        return shown if isinstance(shown, web.Response) else web.Response(text=shown)

    app = web.Application()
    app.router.add_get("/registry/v2/vm", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    config = AnkaConfig.model_validate({"registry": f"http://127.0.0.1:{runner.addresses[0][1]}"})
    registry = AnkaRegistry(config, Login(config))
    try:
        yield registry
    finally:
        await registry.close()
        await runner.cleanup()


async def find(shown: str | web.Response) -> Version:
    async with answering(shown) as registry:
        return await registry.find(NAME)


def versions(**fields: Any) -> str:
    version = {"number": 0, "tag": "v1", "images": ["a"], "size": 10} | fields
    return json.dumps({"status": "OK", "body": {"versions": [version]}})


@pytest.mark.parametrize("value", ["9" * 400, "x", [], {}, True, -1, 1.5, None, "\u0663"])
@pytest.mark.parametrize("field", ["number", "size"])
async def test_odd_number_is_read_in_bounds(field: str, value: object) -> None:
    assert (await find(versions(**{field: value}))).tag == "v1"


@pytest.mark.parametrize("shown", ["[" * 100_000, "{", "", '{"status": "OK", "body": ' + "9" * 5000 + "}"])
async def test_malformed_answer_is_a_named_error(shown: str) -> None:
    with pytest.raises(RegistryError, match="127.0.0.1"):
        await find(shown)


async def test_redirect_is_not_followed() -> None:
    """A redirect could lead from https to http, or to a service of this host."""
    with pytest.raises(RegistryError, match="redirects to another address") as raised:
        await find(web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}))
    assert "hypervisor.anka" in raised.value.remedy


class Replying:
    """An `anka` that reports one body to every query."""

    def __init__(self, body: object) -> None:
        self.body = body

    async def query(self, *_arguments: str, timeout_s: float = 0) -> AnkaReply:
        del timeout_s
        return AnkaReply(self.body, "")


def puller(body: object) -> AnkaPuller:
    return AnkaPuller(Replying(body), None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [math.inf, math.nan, -1, 10**30, "9" * 5000, "x", [], None])
async def test_odd_download_size_is_a_named_error(size: object) -> None:
    with pytest.raises(AnkaReplyError, match="reported no size"):
        await puller({"size": size}).size(Version("sha256:x", "macos", "v1", "hearth"))


async def test_download_size_is_read() -> None:
    found = await puller({"size": "30", "cached": 10, "available": 5}).size(
        Version("sha256:x", "macos", "v1", "hearth")
    )
    assert found == DownloadSize(20, 5)
