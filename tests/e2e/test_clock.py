"""The host's clock is set while an agent runs, and between two runs: no VM, lease or image is lost."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.lib.host import Host
from tests.test_daemon import AGENT_PROBE, an_image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

DAY_S = 86400.0
TTL_S = 3600.0
TOLERANCE_S = 60.0  # how long this test may take


def find_library() -> str:
    """Return the path of libfaketime. It leaves CLOCK_BOOTTIME and CLOCK_MONOTONIC as they are, as a step does."""
    listed = subprocess.run(["dpkg", "-L", "libfaketime"], capture_output=True, text=True, check=False).stdout
    return next((line for line in listed.splitlines() if line.endswith("/libfaketime.so.1")), "")


class ClockedHost(Host):
    """A host whose agent sees the real time with an offset that the test sets."""

    def set_clock(self, offset_s: float) -> None:
        aside = self.directory / "offset.new"
        aside.write_text(f"{offset_s:+.3f}\n")
        aside.rename(self.directory / "offset")

    async def start_clocked(self) -> None:
        await self.start(
            env={
                "LD_PRELOAD": find_library(),
                "FAKETIME_TIMESTAMP_FILE": str(self.directory / "offset"),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        )


@pytest.fixture
async def host() -> AsyncIterator[ClockedHost]:
    if not find_library():
        pytest.skip("needs libfaketime")
    made = ClockedHost(Path(tempfile.mkdtemp(prefix="hearth-test-")))
    made.configure('[hypervisor]\nkind = "simulated"')
    try:
        yield made
    finally:
        await made.close()
        shutil.rmtree(made.directory, ignore_errors=True)


async def lease_one(host: ClockedHost) -> tuple[str, str]:
    """Start the agent; return its leased VM and the lease."""
    host.assign("small", await an_image(host.directory), warm=1, probes=AGENT_PROBE)
    await host.start_clocked()
    await host.wait_until_warm(1)
    body = {"pool": "small", "holder": "job", "ttl_s": TTL_S, "wait_s": 30}
    lease = await host.call("POST", "/v1/leases", body)
    return lease["vm"], lease["id"]


async def wait_for_steps(host: ClockedHost, count: int) -> None:
    """Wait until the agent has followed that many steps."""

    def steps() -> int:
        return sum(line["event"] == "clock-stepped" for line in host.read_log())

    await host.wait_until(lambda *_: steps() >= count, timeout_s=60)


async def assert_unharmed(host: ClockedHost, vm: str, lease_id: str, offset_s: float) -> None:
    lease = await host.get(f"/v1/leases/{lease_id}")
    assert lease["vm"] == vm
    expires_s = _epoch_s(lease["expires_at"])
    assert 0 <= time.time() + offset_s + TTL_S - expires_s < TOLERANCE_S
    (image,) = (await host.get("/v1/images"))["images"]
    assert image["state"] == "present"
    bad = {"vm-failed", "vm-gone", "lease-expired", "lease-broken", "image-evicted", "resolve-failed"}
    assert [line for line in host.read_log() if line["event"] in bad] == []


def _epoch_s(text: str) -> float:
    moment = subprocess.run(["date", "-d", text, "+%s.%N"], capture_output=True, text=True, check=True)
    return float(moment.stdout)


async def test_clock_steps_harm_no_lease(host: ClockedHost) -> None:
    host.set_clock(0)
    vm, lease_id = await lease_one(host)
    for number, offset_s in enumerate((DAY_S, -DAY_S, -400 * DAY_S, 3 * 3600.0), 1):
        host.set_clock(offset_s)
        await wait_for_steps(host, number)
        await assert_unharmed(host, vm, lease_id, offset_s)
    for number in range(1, 21):
        host.set_clock(3 * 3600.0 + number * 0.5)
        await host.call("PATCH", f"/v1/leases/{lease_id}", {"ttl_s": TTL_S})
    await wait_for_steps(host, 5)
    await assert_unharmed(host, vm, lease_id, 3 * 3600.0 + 10.0)


async def test_start_in_1970_is_corrected_without_harm(host: ClockedHost) -> None:
    in_1970_s = 600.0 - time.time()
    host.set_clock(in_1970_s)
    vm, lease_id = await lease_one(host)
    await assert_unharmed(host, vm, lease_id, in_1970_s)
    host.set_clock(0)
    await wait_for_steps(host, 1)
    await assert_unharmed(host, vm, lease_id, 0)


@pytest.mark.parametrize("offset_s", [DAY_S, -DAY_S])
async def test_clock_set_between_two_runs_harms_no_lease(host: ClockedHost, offset_s: float) -> None:
    """The VMs of the simulated hypervisor end with the agent, so the lease is read before the first observation."""
    host.set_clock(0)
    _, lease_id = await lease_one(host)
    await host.kill()
    host.set_clock(offset_s)
    await host.start_clocked()
    await wait_for_steps(host, 1)

    def events() -> list[str]:
        return [line["event"] for line in host.read_log()]

    await host.wait_until(lambda *_: "lease-broken" in events(), timeout_s=60)
    lines = events()
    assert "lease-expired" not in lines
    assert lines.index("clock-stepped") < lines.index("lease-broken"), lease_id
