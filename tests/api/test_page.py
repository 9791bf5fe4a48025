"""The status page in a browser: its content, its updates, and its reconnection after a restart."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from agent.api.auth import Role, TokenAuthenticator, create_token
from agent.api.resources.page import FILES
from agent.domain.events import Event, EventKind
from agent.domain.states import VmState
from agent.images.contract import PullProgress
from tests.api.chromium import Page, chromium
from tests.api.conftest import Running, run
from tests.api.real_engine import COMING, RealEngine, vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.slow

LIVE = "document.querySelector('#connection')?.dataset.state === 'live'"


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Page]:
    async with chromium(tmp_path / "profile") as page:
        yield page


async def opened(browser: Page, api: Running) -> None:
    await browser.call("Page.navigate", url=f"http://127.0.0.1:{api.server.port}/")
    await browser.wait_for(LIVE)


async def text(browser: Page, selector: str) -> str:
    shown: str = await browser.evaluate(f"document.querySelector({selector!r}).innerText")
    return shown


async def test_page_file_has_a_strict_policy_and_an_etag(api: Running) -> None:
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


async def test_page_shows_the_host_and_its_changes(api: Running, browser: Page) -> None:
    api.engine.images.pulling = (PullProgress("registry/small:v2", COMING, 1000, 250, 250, 50.0, 18.0),)
    await opened(browser, api)
    assert await text(browser, "#host") == "mac-1"
    assert await browser.evaluate("[...document.querySelectorAll('#slots li')].map((e) => e.dataset.state)") == [
        "ready", "starting",
    ]  # fmt: skip
    assert "1 of 2" in await text(browser, "#pools tbody")
    assert "25 %" in await text(browser, "#images tbody")
    assert "serving" in await text(browser, "#rollouts tbody")
    assert "Ready" in await text(browser, "#conditions")
    assert await browser.evaluate("document.querySelectorAll('#timelines li').length") == 2
    assert "small has 1 of 2 warm VMs" in await text(browser, "#problems")

    await browser.evaluate(
        "window.lines = []; window.line = document.querySelector('#connection');"
        "new MutationObserver(() => window.lines.push(window.line.textContent))"
        ".observe(window.line, { childList: true }); 1"
    )
    await api.engine.move_vm("hearth-small-2", VmState.READY)
    await browser.wait_for("document.querySelector('#pools tbody').innerText.includes('2 of 2')")
    await browser.wait_for("document.querySelector('#events').innerText.includes('vm-ready')")
    assert await browser.evaluate("document.querySelector('#problems').hidden") is True
    assert await browser.evaluate("window.lines") == [], "an event must not cost the connection"
    assert browser.problems == []


async def test_page_shows_text_of_guests_without_interpreting_it(api: Running, browser: Page) -> None:
    detail = "<b id='attack'>x</b> \u202eabc \x1b[2J \u2028 \x9b1m 日本"
    await opened(browser, api)
    await api.engine.commit(Event(EventKind.VM_FAILED, time.time(), vm="hearth-small-1", detail=detail))
    await browser.wait_for("document.querySelector('#events').innerText.includes('日本')")
    shown = await text(browser, "#events")
    assert "<b id='attack'>x</b> \\u{202e}abc \\u{1b}[2J \\u{2028} \\u{9b}1m 日本" in shown
    assert await browser.evaluate("document.querySelector('#attack') === null")
    assert browser.problems == []


async def test_page_requests_a_token_when_the_agent_needs_one(browser: Page, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    secret = create_token(tokens, "me", Role.READ, now_s=0.0)
    async with run(RealEngine(vm("hearth-small-1")), tmp_path, authenticator=TokenAuthenticator(tokens)) as api:
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


async def test_page_reconnects_when_the_agent_restarts(browser: Page, tmp_path: Path) -> None:
    async with run(RealEngine(vm("hearth-small-1")), tmp_path) as api:
        await opened(browser, api)
        port = api.server.port
    await browser.wait_for("document.querySelector('#connection')?.dataset.state === 'lost'")
    async with run(RealEngine(vm("hearth-small-7"), data="other"), tmp_path, port=port):
        await browser.wait_for(LIVE)
        await browser.wait_for("document.querySelector('#vms tbody').innerText.includes('hearth-small-7')")
    assert [message for message in browser.problems if "net::ERR" not in message] == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
async def test_page_fits_screen_and_colour_scheme(api: Running, browser: Page, width: int, scheme: str) -> None:
    await browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
    )
    await browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    await opened(browser, api)
    assert await browser.evaluate("document.documentElement.scrollWidth") <= width
    back = await browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert await browser.evaluate(CONTRAST) == []
    dark = sum(int(part) for part in back.removeprefix("rgb(").removesuffix(")").split(",")) < 384
    assert dark is (scheme == "dark")


async def test_page_has_names_and_landmarks_for_screen_readers(api: Running, browser: Page) -> None:
    await opened(browser, api)
    tree = (await browser.call("Accessibility.getFullAXTree"))["nodes"]
    seen: dict[str, list[str]] = {}
    for item in tree:
        if not item.get("ignored"):
            seen.setdefault(item["role"]["value"], []).append(item.get("name", {}).get("value", ""))
    assert seen["main"]
    assert all(name for role in ("heading", "meter", "image", "link", "region") for name in seen.get(role, []))
    assert {"Slots", "Pools", "VMs", "Rollouts", "Images", "Conditions", "Events"} <= set(seen["heading"])
    assert {"banner", "contentinfo"} <= set(seen)
    assert {"Pools", "VMs", "Images"} <= set(seen["region"])
    assert "live" in seen.get("status", []) or await text(browser, "#connection") == "live"


async def test_tab_key_reaches_parts_in_order_with_visible_focus(api: Running, browser: Page) -> None:
    await opened(browser, api)
    await browser.call("Emulation.setFocusEmulationEnabled", enabled=True)
    reached: list[str] = []
    while len(reached) < 40:
        for kind in ("rawKeyDown", "keyUp"):
            await browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        where = "document.activeElement"
        if await browser.evaluate(f"{where} === document.body"):
            break
        reached.append(await browser.evaluate(f"{where}.className || {where}.id || {where}.textContent"))
        assert await browser.evaluate(f"getComputedStyle({where}).outlineStyle") != "none", reached
    assert reached[0] == "skip"
    expected = ["timelines", "events", "Readiness"]
    assert [part for part in reached if part in expected] == expected


async def test_unchanged_parts_are_not_redrawn(api: Running, browser: Page) -> None:
    """A refresh without changes keeps the selection, the focus and the position of a screen reader."""
    await opened(browser, api)
    await browser.evaluate(
        "[window.pool, window.image] = [...document.querySelectorAll('#pools tbody tr, #images tbody tr')]; 1"
    )
    await api.engine.move_vm("hearth-small-1", VmState.STOPPING)
    await browser.wait_for("document.querySelector('#vms tbody').innerText.includes('stopping')")
    assert await browser.evaluate("[window.pool.isConnected, window.image.isConnected]") == [False, True]


async def module(browser: Page, expression: str) -> Any:
    return await browser.evaluate(f"import('/timeline.js').then((m) => {expression})")


async def test_vm_timelines_are_drawn_from_events(api: Running, browser: Page) -> None:
    await opened(browser, api)
    events = (
        "[['vm-creating', 10], ['vm-starting', 11], ['vm-ready', 20], ['lease-granted', 30], ['lease-renewed', 35],"
        "['vm-stopping', 40], ['vm-gone', 45]].map(([kind, s]) => ({kind, vm: 'a', at: new Date(s * 1000).toJSON()}))"
    )
    (timeline,) = await module(browser, f"m.vmTimelines({events}, [], 15000, 60000)")
    assert [(part["state"], part["from"] / 1000, part["to"] / 1000) for part in timeline["parts"]] == [
        ("starting", 15, 20), ("ready", 20, 30), ("leased", 30, 40), ("stopping", 40, 45),
    ]  # fmt: skip


async def test_capacity_chart_excludes_standby_vms(api: Running, browser: Page) -> None:
    await opened(browser, api)
    parts = (
        "[{vm: 'a', parts: [{state: 'ready', from: 0, to: 30}, {state: 'leased', from: 30, to: 60}]},"
        "{vm: 'b', parts: [{state: 'ready', from: 30, to: 45}, {state: 'standby', from: 45, to: 60}]}]"
    )
    assert await module(browser, f"m.slotCounts({parts}, 0)") == [
        {"at": 0, "counts": [0, 1, 0, 0, 0]},
        {"at": 30, "counts": [1, 1, 0, 0, 0]},
        {"at": 45, "counts": [1, 0, 0, 0, 0]},
        {"at": 60, "counts": [0, 0, 0, 0, 0]},
    ]
    drawn = await module(browser, f"m.capacity({parts}, 3, 0, 60)")
    assert (drawn["peak"], drawn["top"], [band["state"] for band in drawn["bands"]]) == (2, 10, ["leased", "ready"])
    assert drawn["bands"][0]["path"].startswith("M0 100L500 100L500 70L750 70L750 70L1000 70")
    assert await module(browser, "m.ticks(30000, 330000)") == [60000, 120000, 180000, 240000, 300000]


def short_vm_events(count: int, *, ago_s: float) -> list[Event]:
    """Return the events of VMs that existed for one second each, one after another. The first began `ago_s` ago."""
    first_s = time.time() - ago_s
    kinds = (EventKind.VM_CREATING, EventKind.VM_READY, EventKind.VM_STOPPING, EventKind.VM_GONE)
    return [
        Event(kind, first_s + number + step / 4, vm=f"hearth-small-{number:08}", pool="small")
        for number in range(count)
        for step, kind in enumerate(kinds)
    ]


async def test_reloaded_page_shows_the_last_hour(api: Running, browser: Page) -> None:
    await api.engine.commit(*short_vm_events(300, ago_s=7200), *short_vm_events(600, ago_s=1800))
    summary = "document.querySelector('#timelines-text').innerText"
    for _ in range(2):
        await opened(browser, api)
        await browser.wait_for(f"{summary}.startsWith('602 VMs existed in the last 1h')")
        assert await browser.evaluate("document.querySelectorAll('#capacity path').length") > 0
    assert browser.problems == []


CONTRAST = """
(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (e) => {
    const back = rgb(getComputedStyle(e).backgroundColor);
    return back[3] === 0 && e.parentElement ? behind(e.parentElement) : back;
  };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.namespaceURI.endsWith('svg')) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) poor.push(`${e.tagName} ${e.textContent.trim()}: ${contrast.toFixed(2)}`);
  }
  return poor;
})()
"""


async def test_vm_without_events_is_drawn_from_its_state(api: Running, browser: Page) -> None:
    await opened(browser, api)
    listed = "[{name: 'a', state: 'creating', since: new Date(20000).toJSON()}]"
    (timeline,) = await module(browser, f"m.vmTimelines([], {listed}, 0, 60000)")
    assert timeline["parts"] == [{"state": "starting", "from": 20000, "to": 60000}]
