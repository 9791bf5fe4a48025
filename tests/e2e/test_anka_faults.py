"""The whole agent while `anka` misbehaves, one way after another: it answers, ends what hangs, tells why, and recovers.

`HEARTH_SLOW=1 … -s` goes through all of them and prints the table; without it a few stand for the rest.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from scripts.lib.anka_ground import AnkaGround
from scripts.lib.host import Host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.simulators.anka.faults import Switches

POOL = "mac"
SAMPLE_S = 0.02
TOLD_S = 45.0
STUCK_S = 1.0
"""What `/livez` may take at the worst on a machine that does ten other things. The table tells what it took."""


@dataclass(frozen=True)
class Fault:
    """What misbehaves, how, and what the agent must tell of it: nothing where it must get past it."""

    name: str
    switches: dict[str, Switches]
    told: str = ""
    by: str = "replace"  # what makes the agent run into it: replace a VM, look around, or pull a version
    fast: bool = False


HANGS: Switches = {"hang": True, "ignore_term": True}
FAULTS = (
    Fault("list hangs", {"list": {"hang": True}}, "did not end in 1 s", by="look"),
    Fault("list hangs, ignores TERM", {"list": HANGS}, "did not end in 1 s", by="look"),
    Fault("list prints garbage", {"list": {"garbage": True}}, "answered no JSON", by="look"),
    Fault("list answers {}", {"list": {"empty_body": True}}, "where a list belongs", by="look"),
    Fault("list invents two running VMs", {"list": {"invent": ["theirs-1", "theirs-2"]}}, "0 of 1 warm"),
    Fault("clone hangs, ignores TERM", {"clone": HANGS}, "did not end in 2 s"),
    Fault("clone breaks off half-way", {"clone": {"half": True}}, "status 74"),
    Fault("clone dies at step 1", {"clone": {"die_at": 1}}, "exit code -9"),
    Fault("clone only says it did", {"clone": {"lie": True}}, "not found"),
    Fault("modify dies at step 1", {"modify": {"die_at": 1}}, "exit code -9"),
    Fault("start hangs, ignores TERM", {"start": HANGS}, "did not end in 2 s"),
    Fault("start finds no slot", {"start": {"fail": "maximum number of running instances exceeded"}}, "a slot leaked"),
    Fault("start fails, but the VM runs", {"start": {"half": True}}, "No child processes", fast=True),
    Fault("start dies at step 2", {"start": {"die_at": 2}}, "exit code -9"),
    Fault("start only says it did", {"start": {"lie": True}}, "it does not run"),
    Fault("show prints garbage", {"show": {"garbage": True}}, "answered no JSON"),
    Fault("run hangs", {"run": {"hang": True}}, "did not answer", by="look"),
    Fault("stop hangs, ignores TERM", {"stop": HANGS}, fast=True),
    Fault("stop only says it did", {"stop": {"lie": True}}),
    Fault("stop leaks a slot", {"stop": {"leak_slot": True, "times": 1}}),
    Fault("delete hangs", {"delete": {"hang": True}}, "did not end in 1 s"),
    Fault("delete only says it did", {"delete": {"lie": True}}, "still listed"),
    Fault("pull fails half-way", {"pull": {"break_at": 1}}, "Input/output error", by="pull"),
    Fault("pull only says it did", {"pull": {"lie": True}}, "not here", by="pull"),
    Fault("pull dies", {"pull": {"die_at": 1}}, "exit code -9", by="pull"),
    Fault("everything takes 0.4 s more", {"*": {"slow_s": 0.4}}),
)


@dataclass
class Pulse:
    """How long `/livez` took, asked all the time, in seconds."""

    took_s: list[float] = field(default_factory=list)

    @property
    def p99_ms(self) -> float:
        return sorted(self.took_s)[int(len(self.took_s) * 0.99)] * 1000 if self.took_s else 0.0


@asynccontextmanager
async def pulse(host: Host) -> AsyncIterator[Pulse]:
    taken = Pulse()

    async def ask() -> None:
        async with aiohttp.ClientSession("http://h", connector=aiohttp.UnixConnector(str(host.socket))) as http:
            while True:
                began_s = time.monotonic()
                async with http.get("/livez") as response:
                    assert response.status == 200
                taken.took_s.append(time.monotonic() - began_s)
                await asyncio.sleep(SAMPLE_S)

    task = asyncio.create_task(ask())
    try:
        yield taken
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def mac() -> AsyncIterator[tuple[Host, AnkaGround]]:
    """A host with one warm VM."""
    directory = Path(tempfile.mkdtemp(prefix="hearth-anka-"))
    ground = AnkaGround(directory, timeout_s=1.0, start_timeout_s=2.0)
    host = Host(directory, ground)
    try:
        (reference,) = (await ground.make_images(host, ("0",))).values()
        host.assign(POOL, reference, warm=1)
        await host.start()
        await host.until_warm(1)
        yield host, ground
    finally:
        await host.close()


async def run_into(fault: Fault, host: Host, ground: AnkaGround) -> None:
    if fault.by == "replace":
        (vm,) = (await host.get("/v1/vms"))["vms"]
        await host.call("DELETE", f"/v1/vms/{vm['name']}")
    elif fault.by == "pull":
        host.assign(POOL, ground.add_image("1"), warm=1)


async def told_of(fault: Fault, host: Host, since: int) -> str:
    """Wait until the agent tells what it must; return its words."""
    deadline_s = time.monotonic() + TOLD_S
    while time.monotonic() < deadline_s:
        conditions = (await host.get("/v1/host"))["conditions"]
        told = [f"{one['type']}: {one['message']}" for one in conditions if one["problem"]]
        told += [f"{event['kind']}: {event['detail']}" for event in await events(host, since)]
        if found := next((words for words in told if fault.told in words), ""):
            return found.replace(str(host.directory), "")
        await asyncio.sleep(0.1)
    raise AssertionError(f"{fault.name}: {fault.told!r} was not told")


async def events(host: Host, since: int) -> list[dict[str, Any]]:
    document = await host.get(f"/v1/events?after={since}")
    found: list[dict[str, Any]] = document["events"]
    return found


async def last_event(host: Host) -> int:
    last: int = (await host.get("/v1/events"))["last"]
    return last


async def endure(fault: Fault, host: Host, ground: AnkaGround) -> None:
    """Run into one fault and out of it; print its row of the table."""
    since, told = await last_event(host), "-"
    before = await host.until_warm(1)

    def warm_again(_: dict[str, Any], vms: list[dict[str, Any]]) -> bool:
        return [vm["state"] for vm in vms] == ["ready"] and (fault.by == "look" or vms[0]["name"] not in before)

    async with pulse(host) as taken:
        began_s = time.monotonic()
        ground.faults(**fault.switches)
        await run_into(fault, host, ground)
        if fault.told:
            told = await told_of(fault, host, since)
            ground.faults()
            began_s = time.monotonic()
        await host.until(warm_again, timeout_s=150)
        recovered_s = time.monotonic() - began_s
        ground.faults()
    hung = [tool.cmdline() for tool in ground.tools() if time.time() - tool.create_time() > 30]
    assert hung == [], f"{fault.name}: calls of anka are left"
    assert max(taken.took_s) < STUCK_S, fault.name
    how = f"{recovered_s:.1f} s after its end" if fault.told else f"{recovered_s:.1f} s, with the fault on"
    print(f"| {fault.name} | {told[:120]} | {how} | {taken.p99_ms:.1f} |", flush=True)  # noqa: T201 - the table


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_whatever_anka_does_the_agent_answers_tells_and_recovers(fault: Fault) -> None:
    if not fault.fast and os.environ.get("HEARTH_SLOW") != "1":
        pytest.skip("takes its time: HEARTH_SLOW=1")
    async with mac() as (host, ground):
        await endure(fault, host, ground)
        assert await host.empty() == []
