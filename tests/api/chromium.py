"""A real Chromium, driven over its DevTools protocol: the calls that tests of pages need."""

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
    """One tab. `problems` has the errors of its console; `loaded` is set when a page has loaded."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._count = 0
        self.problems: list[str] = []
        self.loaded = asyncio.Event()

    async def listen(self) -> None:
        """Dispatch the messages of the browser until its connection ends."""
        async for frame in self._socket:
            message = json.loads(frame.data)
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            elif message["method"] == "Page.loadEventFired":
                self.loaded.set()
            elif message["method"] == "Runtime.exceptionThrown":
                self.problems.append(message["params"]["exceptionDetails"]["text"])
            elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.problems.append(message["params"]["entry"]["text"])

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """Call a DevTools method and return its result."""
        self._count += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[self._count] = answer
        await self._socket.send_json({"id": self._count, "method": method, "params": params})
        async with asyncio.timeout(20):
            message = await answer
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, awaited if it is a promise."""
        message = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in message, message
        return message["result"].get("value")

    async def wait_for(self, condition: str) -> None:
        """Wait until a condition is true. It is evaluated after each change of the document."""
        await self.evaluate(
            f"new Promise((done) => {{ const look = () => {{ if ({condition}) {{ watch.disconnect(); done(true); }} }};"
            "const watch = new MutationObserver(look); watch.observe(document, { subtree: true, childList: true,"
            "characterData: true, attributes: true }); look(); })"
        )

    async def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        message = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(message["data"]))


@asynccontextmanager
async def chromium(profile: Path) -> AsyncIterator[Page]:
    """Run a browser with a new profile and yield its tab."""
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


async def _devtools_port(stderr: asyncio.StreamReader) -> int:
    async with asyncio.timeout(60):
        async for line in stderr:
            if b"DevTools listening on ws://" in line:
                return int(line.split(b"://")[1].split(b"/")[0].split(b":")[1])
    raise AssertionError("the browser ended before it listened")
