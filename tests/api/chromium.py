"""A real Chromium, driven over its DevTools protocol: enough to open a page, wait for it, and look."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--no-first-run", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip


class Page:
    """One tab. `problems` holds every error its console has shown; `loaded` is set when a page has loaded."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._count = 0
        self.problems: list[str] = []
        self.loaded = asyncio.Event()

    async def listen(self) -> None:
        """Take in what the browser says, until it ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Page.loadEventFired":
                self.loaded.set()
            elif said["method"] == "Runtime.exceptionThrown":
                self.problems.append(said["params"]["exceptionDetails"]["text"])
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.problems.append(said["params"]["entry"]["text"])

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """Call a DevTools method and return its result."""
        self._count += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[self._count] = answer
        await self._socket.send_json({"id": self._count, "method": method, "params": params})
        async with asyncio.timeout(20):
            said = await answer
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, awaited when it is a promise."""
        said = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def wait_for(self, condition: str) -> None:
        """Return when the page makes the condition true: looked at whenever its document changes."""
        await self.evaluate(
            f"new Promise((done) => {{ const look = () => {{ if ({condition}) {{ watch.disconnect(); done(true); }} }};"
            "const watch = new MutationObserver(look); watch.observe(document, { subtree: true, childList: true,"
            "characterData: true, attributes: true }); look(); })"
        )

    async def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        said = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(said["data"]))


@asynccontextmanager
async def chromium(profile: Path) -> AsyncIterator[Page]:
    """Run a browser with a fresh profile and yield its tab."""
    process = await asyncio.create_subprocess_exec(
        "chromium", *_FLAGS, f"--user-data-dir={profile}", "about:blank",
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        port = await _devtools_port(process.stderr)
        quiet = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            async with client.get("/json/list") as response:
                target = next(item for item in await response.json() if item["type"] == "page")
            async with client.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                for domain in ("Runtime", "Log", "Page"):
                    await page.call(f"{domain}.enable")
                yield page
                listening.cancel()
        quiet.cancel()
    finally:
        process.terminate()
        await process.wait()


async def _devtools_port(said: asyncio.StreamReader) -> int:
    async with asyncio.timeout(60):
        async for line in said:
            if b"DevTools listening on ws://" in line:
                return int(line.split(b"://")[1].split(b"/")[0].split(b":")[1])
    raise AssertionError("the browser ended before it listened")
