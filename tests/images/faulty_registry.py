"""A registry for tests that serves images correctly, and fails on demand.

Each entry of `FAULTS` is a wrong response to one request for a blob. A test arms an entry for a number of requests, or
without a limit. Every request is recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path

Answer = Callable[["FaultyRegistry", web.Request, bytes], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    """One received request."""

    method: str
    path: str
    range: str
    authorization: str


@dataclass
class Armed:
    """A wrong response, and the number of requests that still get it. `only` limits it to some blobs."""

    answer: Answer
    times: float
    only: Callable[[str], bool] = lambda _: True


@dataclass
class FaultyRegistry:
    """One repository, `tests/image`, in memory."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    armed: Armed | None = None
    host: str = ""
    redirect_to: str = ""
    referrers: dict[str, bytes] | None = None
    """The referrers of each manifest; None without the referrers API."""
    _received: asyncio.Event = field(default_factory=asyncio.Event)

    def load(self, layout: Path) -> None:
        """Load all blobs and manifests of an OCI layout."""
        for path in (layout / "blobs" / "sha256").iterdir():
            self.blobs[f"sha256:{path.name}"] = path.read_bytes()
        for entry in json.loads((layout / "index.json").read_bytes())["manifests"]:
            tag = entry.get("annotations", {}).get("org.opencontainers.image.ref.name", "")
            self.manifests[entry["digest"]] = self.manifests[tag] = self.blobs[entry["digest"]]

    def arm(self, fault: str, *, times: float = 1, only: Callable[[str], bool] = lambda _: True) -> None:
        """Send a wrong response to the next `times` requests for blobs."""
        self.armed = Armed(FAULTS[fault], times, only)

    def reference(self, tag: str = "v1") -> str:
        """Return the reference of the image."""
        return f"{self.host}/tests/image:{tag}"

    def gets(self, digest: str = "/blobs/") -> list[Seen]:
        """Return the requests for all blobs, or for one blob."""
        return [seen for seen in self.seen if seen.method == "GET" and digest in seen.path and "/blobs/" in seen.path]

    async def wait_for_blob_requests(self, count: int) -> None:
        """Wait until `count` requests for blobs were received."""
        async with asyncio.timeout(10):
            while len(self.gets()) < count:
                self._received.clear()
                await self._received.wait()

    async def handle_manifest(self, request: web.Request) -> web.StreamResponse:
        """Serve a manifest."""
        self._see(request)
        content = self.manifests.get(request.match_info["target"])
        return web.Response(body=content) if content is not None else web.Response(status=404)

    async def handle_referrers(self, request: web.Request) -> web.StreamResponse:
        """List the referrers of a manifest."""
        self._see(request)
        if self.referrers is None:
            return web.Response(status=404)
        nothing = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
        return web.Response(body=self.referrers.get(request.match_info["digest"], nothing))

    async def handle_blob(self, request: web.Request) -> web.StreamResponse:
        """Serve a blob, or send the armed wrong response."""
        self._see(request)
        digest = request.match_info["digest"]
        content = self.blobs.get(digest)
        if content is None:
            return web.Response(status=404)
        if self.armed and self.armed.times > 0 and self.armed.only(digest):
            self.armed.times -= 1
            return await self.armed.answer(self, request, content)
        return serve(request, content)

    def _see(self, request: web.Request) -> None:
        header = request.headers.get
        self.seen.append(Seen(request.method, request.path, header("Range", ""), header("Authorization", "")))
        self._received.set()


@contextlib.asynccontextmanager
async def run_faulty(
    registry: FaultyRegistry, *middlewares: object, tls: ssl.SSLContext | None = None
) -> AsyncIterator[FaultyRegistry]:
    """Serve a registry on a free loopback port."""
    app = web.Application(middlewares=middlewares)  # type: ignore[arg-type]
    app.router.add_get("/v2/tests/image/manifests/{target}", registry.handle_manifest)
    app.router.add_get("/v2/tests/image/blobs/{digest}", registry.handle_blob)
    app.router.add_get("/v2/tests/image/referrers/{digest}", registry.handle_referrers)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    registry.host = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield registry
    finally:
        await runner.cleanup()


def serve(request: web.Request, content: bytes) -> web.Response:
    """Return the correct response, also for a range."""
    requested = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
    if requested is None:
        return web.Response(body=content)
    start, end = int(requested[1]), int(requested[2]) + 1
    content_range = f"bytes {start}-{end - 1}/{len(content)}"
    return web.Response(status=206, body=content[start:end], headers={"Content-Range": content_range})


async def _wrong_bytes(_: FaultyRegistry, request: web.Request, content: bytes) -> web.StreamResponse:
    middle = len(content) // 2
    return serve(request, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


async def _too_short(_: FaultyRegistry, __: web.Request, content: bytes) -> web.StreamResponse:
    return web.Response(body=content[:-7])


async def _too_long(_: FaultyRegistry, __: web.Request, content: bytes) -> web.StreamResponse:
    return web.Response(body=content + b"surplus")


async def _reset(_: FaultyRegistry, request: web.Request, __: bytes) -> web.StreamResponse:
    _transport(request).abort()
    return web.Response()


async def _cut(_: FaultyRegistry, request: web.Request, content: bytes) -> web.StreamResponse:
    whole = serve(request, content)
    assert isinstance(whole.body, bytes)
    response = await _begin(request, whole)
    await response.write(whole.body[: len(whole.body) * 4 // 10])
    _transport(request).close()
    return response


async def _stall(_: FaultyRegistry, request: web.Request, content: bytes) -> web.StreamResponse:
    whole = serve(request, content)
    assert isinstance(whole.body, bytes)
    response = await _begin(request, whole)
    await response.write(whole.body[:100])
    await asyncio.sleep(3600)
    return response


async def _drip(_: FaultyRegistry, request: web.Request, content: bytes) -> web.StreamResponse:
    whole = serve(request, content)
    assert isinstance(whole.body, bytes)
    response = await _begin(request, whole)
    for byte in whole.body:
        await response.write(bytes([byte]))
        await asyncio.sleep(0.1)
    return response


async def _too_many(_: FaultyRegistry, __: web.Request, ___: bytes) -> web.StreamResponse:
    return web.Response(status=429, text="slow down")


async def _too_many_for_now(_: FaultyRegistry, __: web.Request, ___: bytes) -> web.StreamResponse:
    return web.Response(status=429, headers={"Retry-After": "1"})


async def _broken(_: FaultyRegistry, __: web.Request, ___: bytes) -> web.StreamResponse:
    return web.Response(status=500)


async def _no_ranges(_: FaultyRegistry, __: web.Request, content: bytes) -> web.StreamResponse:
    return web.Response(body=content)


async def _other_range(_: FaultyRegistry, request: web.Request, content: bytes) -> web.StreamResponse:
    size = len(serve(request, content).body or b"")  # type: ignore[arg-type]
    content_range = f"bytes 1-{size}/{len(content)}"
    return web.Response(status=206, body=content[:size], headers={"Content-Range": content_range})


async def _redirect(registry: FaultyRegistry, request: web.Request, _: bytes) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect(f"{registry.redirect_to}{request.path}")


async def _expired(_: FaultyRegistry, _request: web.Request, _content: bytes) -> web.StreamResponse:
    return web.Response(status=403, text="AccessDenied: Request has expired")


FAULTS: dict[str, Answer] = {
    "wrong bytes": _wrong_bytes,
    "too short": _too_short,
    "too long": _too_long,
    "reset": _reset,
    "cut at 40 %": _cut,
    "stall": _stall,
    "drip": _drip,
    "429": _too_many,
    "429 with Retry-After": _too_many_for_now,
    "500": _broken,
    "200 for Range": _no_ranges,
    "another range": _other_range,
    "redirect": _redirect,
    "expired": _expired,
}


async def _begin(request: web.Request, like: web.Response) -> web.StreamResponse:
    response = web.StreamResponse(status=like.status, headers={"Content-Length": str(len(like.body or b""))})  # type: ignore[arg-type]
    if "Content-Range" in like.headers:
        response.headers["Content-Range"] = like.headers["Content-Range"]
    await response.prepare(request)
    return response


def _transport(request: web.Request) -> asyncio.WriteTransport:
    assert isinstance(request.transport, asyncio.WriteTransport)
    return request.transport
