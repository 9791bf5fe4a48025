"""Cost of the agent alone: leases and an idle host, on the real daemon with simulated VMs."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.lib.host import Host

POOL: Final = "bench"
SLOTS: Final = 400
CONFIG: Final = '[hypervisor]\nkind = "simulated"\n'
HOST_KEYS: Final = "cpus = 4000\nmemory_mib = 4000000\n"
AGENT_PROBE: Final = '\n[[pools.{pool}.probes]]\nkind = "agent"\n'


def configure(host: Host) -> None:
    """Configure a host with capacity for hundreds of simulated VMs."""
    host.configure(CONFIG, slots=SLOTS)
    host.config.write_text(host.config.read_text().replace("[host]\n", f"[host]\n{HOST_KEYS}"))


@dataclass(slots=True)
class Leases:
    """Durations in milliseconds, measured alternately: leases, and one write with fdatasync to the same disk."""

    taken_ms: list[float] = field(default_factory=list)
    sync_ms: list[float] = field(default_factory=list)


async def lease(host: Host, image: str, *, warm: int, rounds: int, pause_s: float) -> Leases:
    """Lease `warm` times `rounds` ready VMs, one after another over one connection.

    Every lease is durable before its response. Its refill runs concurrently with the next leases. With `pause_s` 0 all
    refills run at the same time, which no real hypervisor can do.
    """
    host.assign(POOL, image, warm=warm, probes=AGENT_PROBE)
    measured = Leases()
    for _ in range(rounds):
        await _until_ready(host, warm)
        leases = []
        for number in range(warm):
            body = {"pool": POOL, "holder": f"job-{number}", "wait_s": 0}
            began_s = time.perf_counter()
            answer = await host.call("POST", "/v1/leases", body)
            measured.taken_ms.append((time.perf_counter() - began_s) * 1000)
            leases.append(answer["id"])
            await asyncio.sleep(pause_s)
            measured.sync_ms.append(await asyncio.to_thread(_sync_ms, host.directory / "sync"))
        for lease_id in leases:
            await host.call("DELETE", f"/v1/leases/{lease_id}")
    await _until_ready(host, warm)
    return measured


def _sync_ms(path: Path) -> float:
    """Return the duration of one durable write of a page: the minimum for a durable response."""
    with path.open("ab") as file:
        file.write(bytes(4096))
        began_s = time.perf_counter()
        file.flush()
        os.fdatasync(file.fileno())
        return (time.perf_counter() - began_s) * 1000


async def idle_cpu_pct(host: Host, *, over_s: float) -> float:
    """Return the idle agent's CPU usage, in percent of one core."""
    agent = psutil.Process(host.pid)
    await asyncio.sleep(3)  # until earlier work has ended
    before, began_s = agent.cpu_times(), time.monotonic()
    await asyncio.sleep(over_s)
    after, took_s = agent.cpu_times(), time.monotonic() - began_s
    return (after.user + after.system - before.user - before.system) / took_s * 100


async def many_idle_cpu_pct(host: Host, image: str, *, count: int, over_s: float) -> float:
    """Return the agent's CPU usage with `count` ready simulated VMs, in percent of one core."""
    host.assign(POOL, image, warm=count, probes=AGENT_PROBE)
    await _until_ready(host, count)
    return await idle_cpu_pct(host, over_s=over_s)


async def _until_ready(host: Host, count: int) -> None:
    """Wait until a pool has `count` VMs, all ready."""

    def warm(_: object, vms: list[dict[str, object]]) -> bool:
        states = [vm["state"] for vm in vms]
        return states.count("ready") == len(states) == count

    await host.wait_until(warm, timeout_s=120)


def tiny_disk(path: Path) -> Path:
    """Write a small disk for simulated VMs."""
    path.write_bytes(b"simulated".ljust(1 << 20, b"\0"))
    return path
