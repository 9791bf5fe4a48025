"""The status page in a real browser: what it shows, that it lives, and that it comes back after a restart."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from agent.api.auth import Role, TokenGate, create_token
from agent.api.resources.page import FILES
from agent.domain.states import VmState
from agent.images.contract import PullProgress
from tests.api.chromium import Page, chromium
from tests.api.conftest import Running, run
from tests.api.memory_engine import COMING, MemoryEngine, vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LIVE = "document.querySelector('#line')?.dataset.state === 'live'"


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Page]:
    async with chromium(tmp_path / "profile") as page:
        yield page


async def opened(browser: Page, api: Running) -> None:
    await browser.call("Page.navigate", url=f"http://127.0.0.1:{api.server.port}/")
    await browser.wait_for(LIVE)


async def text(browser: Page, selector: str) -> str:
    told: str = await browser.evaluate(f"document.querySelector({selector!r}).innerText")
    return told


async def test_every_file_has_a_strict_policy_and_is_sent_once(api: Running) -> None:
    for path, (_, media_type) in FILES.items():
        async with api.tcp.get(path) as response:
            assert response.status == 200
            assert response.content_type == media_type
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            assert "unsafe" not in response.headers["Content-Security-Policy"]
            body, etag = await response.text(), response.headers["ETag"]
        assert "http://" not in body.replace("http://www.w3.org/", "")
        assert "https://" not in body
        async with api.tcp.get(path, headers={"If-None-Match": etag}) as response:
            assert response.status == 304


async def test_the_page_shows_the_host_and_follows_what_happens(api: Running, browser: Page) -> None:
    api.engine.pulling = (PullProgress("registry/small:v2", COMING, 1000, 250, 250, 50.0, 18.0),)
    await opened(browser, api)
    assert await text(browser, "#host") == "mac-1"
    assert await browser.evaluate("[...document.querySelectorAll('#slots li')].map((e) => e.dataset.state)") == [
        "ready", "starting",
    ]  # fmt: skip
    assert "1 of 2" in await text(browser, "#pools tbody")
    assert "25 %" in await text(browser, "#images tbody")
    assert "small has 1 of 2 warm VMs" in await text(browser, "#problems")

    api.engine.become("hearth-small-2", VmState.READY)
    await browser.wait_for("document.querySelector('#pools tbody').innerText.includes('2 of 2')")
    await browser.wait_for("document.querySelector('#events').innerText.includes('vm-ready')")
    assert await browser.evaluate("document.querySelector('#problems').hidden") is True
    assert browser.problems == []


async def test_it_asks_for_a_token_where_the_agent_does(browser: Page, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    secret = create_token(tokens, "me", Role.READ, now_s=0.0)
    async with run(MemoryEngine(vm("hearth-small-1")), tmp_path, gate=TokenGate(tokens)) as api:
        await browser.call("Page.navigate", url=f"http://127.0.0.1:{api.server.port}/")
        await browser.wait_for("document.querySelector('#login')?.hidden === false")
        browser.loaded.clear()
        await browser.evaluate(
            f"document.querySelector('#token').value = '{secret}'; document.querySelector('#login button').click()"
        )
        async with asyncio.timeout(20):
            await browser.loaded.wait()
        await browser.wait_for(LIVE)
        assert "hearth-small-1" in await text(browser, "#vms tbody")
        assert await browser.evaluate("document.querySelector('#login').hidden") is True


async def test_it_comes_back_by_itself_when_the_agent_does(browser: Page, tmp_path: Path) -> None:
    async with run(MemoryEngine(vm("hearth-small-1")), tmp_path) as api:
        await opened(browser, api)
        port = api.server.port
    await browser.wait_for("document.querySelector('#line')?.dataset.state === 'lost'")
    async with run(MemoryEngine(vm("hearth-small-7")), tmp_path, port=port):
        await browser.wait_for(LIVE)
        await browser.wait_for("document.querySelector('#vms tbody').innerText.includes('hearth-small-7')")
    assert [said for said in browser.problems if "net::ERR" not in said] == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
async def test_it_fits_a_phone_and_a_desk_in_light_and_dark(
    api: Running, browser: Page, width: int, scheme: str
) -> None:
    await browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
    )
    await browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    await opened(browser, api)
    assert await browser.evaluate("document.documentElement.scrollWidth") <= width
    back = await browser.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(int(part) for part in back.removeprefix("rgb(").removesuffix(")").split(",")) < 384
    assert dark is (scheme == "dark")


async def test_it_is_made_for_keyboards_and_screen_readers(api: Running, browser: Page) -> None:
    await opened(browser, api)
    tree = (await browser.call("Accessibility.getFullAXTree"))["nodes"]
    seen: dict[str, list[str]] = {}
    for item in tree:
        if not item.get("ignored"):
            seen.setdefault(item["role"]["value"], []).append(item.get("name", {}).get("value", ""))
    assert seen["main"]
    assert all(name for role in ("heading", "meter", "image", "link", "region") for name in seen.get(role, []))
    assert {"Slots", "Pools", "VMs", "Images", "Events"} <= set(seen["heading"])
    assert "live" in seen.get("status", []) or await text(browser, "#line") == "live"


async def module(browser: Page, expression: str) -> Any:
    return await browser.evaluate(f"import('/timeline.js').then((m) => {expression})")


async def test_lives_are_drawn_from_events(api: Running, browser: Page) -> None:
    await opened(browser, api)
    events = (
        "[['vm-creating', 10], ['vm-starting', 11], ['vm-ready', 20], ['lease-granted', 30], ['lease-renewed', 35],"
        "['vm-stopping', 40], ['vm-gone', 45]].map(([kind, s]) => ({kind, vm: 'a', at: new Date(s * 1000).toJSON()}))"
    )
    (life,) = await module(browser, f"m.lives({events}, [], 15000, 60000)")
    assert [(part["state"], part["from"] / 1000, part["to"] / 1000) for part in life["parts"]] == [
        ("starting", 15, 20), ("ready", 20, 30), ("leased", 30, 40), ("stopping", 40, 45),
    ]  # fmt: skip
    drawn = await module(browser, f"m.capacityPath(m.lives({events}, [], 0, 60000), 2, 0, 60000)")
    assert drawn == {"path": "M0 100 L167 100 L167 55 L750 55 L750 100 L1000 100 L1000 100 Z", "peak": 1, "top": 10}


async def test_a_vm_without_events_is_drawn_from_its_state(api: Running, browser: Page) -> None:
    await opened(browser, api)
    listed = "[{name: 'a', state: 'creating', since: new Date(20000).toJSON()}]"
    (life,) = await module(browser, f"m.lives([], {listed}, 0, 60000)")
    assert life["parts"] == [{"state": "starting", "from": 20000, "to": 60000}]
